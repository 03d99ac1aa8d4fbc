# SPDX-License-Identifier: GPL-2.0
# Guests, disks and comparisons for scripts in the test machine.  Sourced, not run.

libexec=/usr/lib/kvmsnap-tests
work=${KVMSNAP_WORK:-/tmp/kvmsnap}
mkdir -p "$work"

# Without a process, which costs an emulated CPU as much as a short sleep is long.
exec {asleep}<> <(:)
sleep() { read -r -t "${1%s}" -u $asleep || true; }

# KVMSNAP_QEMU=backports: the newest packaged QEMU for the guests, which is unpacked beside the stable one.
if [ "${KVMSNAP_QEMU:-}" = backports ] && [ ! -e "$work/bin/qemu-system-x86_64" ]; then
	mkdir -p "$work/bin"
	cat >"$work/bin/qemu-system-x86_64" <<-'EOT'
		#!/bin/sh
		exec /opt/qemu-backports/usr/bin/qemu-system-x86_64 -L /opt/qemu-backports/usr/share/qemu \
			-L /opt/qemu-backports/usr/share/seabios "$@"
	EOT
	chmod +x "$work/bin/qemu-system-x86_64"
fi
[ "${KVMSNAP_QEMU:-}" != backports ] || PATH=$work/bin:$PATH

# Guests run the kernel that the machine runs, but for the debug kernel, in which they would take for
# ever: these run the packaged one.
guest_release() {
	case $(uname -r) in
	*-kvmsnap-debug) (cd /lib/modules && ls -d 6.12.*-amd64) ;;
	*) uname -r ;;
	esac
}

# Unpacked, which starts sooner.  GUEST_PACKED: as it is packaged, which then chooses where it lies (KASLR).
guest_kernel() {
	local k=/boot/vmlinux-$(guest_release)
	[ -z "${GUEST_PACKED:-}" ] || k=/lib/modules/$(guest_release)/vmlinuz
	[ -e "$k" ] || k=/boot/vmlinuz-$(guest_release)
	echo "$k"
}

# guest_initrd MODULE...: the test guest's initramfs, with those modules and what they need.
guest_initrd() {
	local name path dir n=100
	[ $# -gt 0 ] || { echo "$libexec/guest.cpio"; return; }
	dir=$work/initrd.$(IFS=.; echo "$*")
	if [ ! -e "$dir.cpio" ]; then
		mkdir -p "$dir/modules"
		for name; do
			modprobe --show-depends --set-version "$(guest_release)" "$name"
		done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r path; do
			n=$((n + 1))
			case $path in
			*.xz) xz -dc "$path" ;;
			*.zst) zstd -qdc "$path" ;;
			*) cat "$path" ;;
			esac >"$dir/modules/$n"
		done
		# The kernel takes one archive behind the other.
		{ cat "$libexec/guest.cpio"; (cd "$dir" && find modules | cpio --quiet -o -H newc); } >"$dir.cpio"
	fi
	echo "$dir.cpio"
}

# qemu_start NAME ARG...: stock QEMU under KVM; its QMP socket is $work/NAME.qmp (and .qmp2, for
# the tests' own use), its console $work/NAME.console (appended to: a test may empty it), its process
# number $work/NAME.pid.  Without GUEST_DEFAULTS it has none of QEMU's default devices, for whose sake
# its firmware takes a third of a guest's boot.
qemu_start() {
	local name=$1
	shift
	rm -f "$work/$name".{qmp,qmp2,console,pid,log}
	# shellcheck disable=SC2086
	${QEMU:-qemu-system-x86_64} -accel "kvm${GUEST_RING:+,dirty-ring-size=$GUEST_RING}" -cpu host -display none \
		${GUEST_DEFAULTS--nodefaults} \
		-chardev "file,id=console,path=$work/$name.console,append=on" -serial chardev:console \
		-monitor none -parallel none -nic none \
		-qmp "unix:$work/$name.qmp,server=on,wait=off" \
		-qmp "unix:$work/$name.qmp2,server=on,wait=off" \
		"$@" >"$work/$name.log" 2>&1 &
	local i pid=$!
	echo $pid >"$work/$name.pid"
	for ((i = 0; i < 600 * ${KVMSNAP_SLOW:-1}; i++)); do
		[ -S "$work/$name.qmp2" ] && return 0
		kill -0 $pid 2>/dev/null || break
		sleep 0.1
	done
	echo "QEMU did not start:" >&2
	cat "$work/$name.log" >&2
	return 1
}

# guest_start NAME "KERNEL ARGS" ARG...: a test guest, up to its "ready".  GUEST_MODULES: for
# guest_initrd.  That the kernel protects its own text takes a tenth of a boot.
guest_start() {
	local name=$1 append=$2
	shift 2
	# shellcheck disable=SC2086
	qemu_start "$name" -kernel "$(guest_kernel)" -initrd "$(guest_initrd ${GUEST_MODULES:-})" \
		-append "console=ttyS0 quiet mitigations=off rodata=off $append" "$@" || return 1
	wait_for "$name" 'guest: ready' 120
}

# guest_again NAME "KERNEL ARGS" ARG...: as guest_start, or the guest that an earlier case has left, if that was
# started so, is no worse for it, and lives.
guest_again() {
	local how pid
	how="${GUEST_RING:-} ${GUEST_DEFAULTS-none} ${GUEST_MODULES:-} ${GUEST_PACKED:-} ${*:2}"
	if [ "$(cat "$work/$1.how" 2>/dev/null)" = "$how" ] && read -r pid <"$work/$1.pid" && kill -0 "$pid"; then
		qmp "$1" '{"execute":"cont"}' >/dev/null
	else
		guest_kill "$1"
		guest_start "$@"
		echo "$how" >"$work/$1.how"
	fi
}

# console NAME: its lines so far are in $console.  Without a process, as above.
console() { mapfile -t console <"$work/$1.console"; }

# await SECONDS COMMAND...: until it succeeds; where the machine is slow, longer.
await() {
	local i
	for ((i = 0; i < $1 * 10 * ${KVMSNAP_SLOW:-1}; i++)); do
		if "${@:2}"; then return; fi
		sleep 0.1
	done
	return 1
}

# What to await.
guest_is() { [ "$(guest_status "$1")" = "$2" ]; }
gone() { [ ! -e "$1" ]; }
no_process() { ! pgrep -x "$1" >/dev/null; }
module_unused() { [ "$(cat /sys/module/kvmsnap/refcnt)" = 0 ]; }
not_logging() { qmp "$1" '{"execute":"query-vcpu-dirty-limit"}' | grep -q '"return": \[\]'; }
migration_is() { [[ $(qmp "$1" '{"execute":"query-migrate"}') =~ \"status\":\ \"($2)\" ]]; }
# session_is "STATE PASS": of the first one.
session_is() { [ "$(kvmsnap status --json | jq -r '.[0] | "\(.state) \(.pass)"')" = "$1" ]; }

# listens PID: to the module's events.
listens() { awk -v pid="$1" '$2 == 16 && $3 == pid && $4 !~ /^0*$/ { found = 1 } END { exit !found }' /proc/net/netlink; }

# wait_for NAME TEXT SECONDS: until the console of NAME shows TEXT; where the machine is slow, longer.
wait_for() {
	local i pid console
	read -r pid <"$work/$1.pid"
	for ((i = 0; i < $3 * 5 * ${KVMSNAP_SLOW:-1}; i++)); do
		console "$1"
		[[ ${console[*]} != *"$2"* ]] || return 0
		[[ ${console[*]} != *'guest: FAILED'* && ${console[*]} != *'Kernel panic'* ]] || break
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.2
	done
	echo "guest $1 did not print '$2':" >&2
	tail -n 5 "$work/$1.console" "$work/$1.log" >&2
	! kill -0 "$pid" 2>/dev/null || guest_doings "$1" >&2
	return 1
}

# last_said NAME PATTERN: what is in brackets in it, in the last whole line of a console that has it: the last
# line may be a part of one.
last_said() {
	local console i
	console "$1"
	for ((i = ${#console[@]} - 2; i >= 0; i--)); do
		[[ ! ${console[i]} =~ $2 ]] || { echo "${BASH_REMATCH[1]}"; break; }
	done
}

# guest_count NAME WHAT: the last figure of that name (writes, reads).
guest_count() { last_said "$1" "^guest: tick .* $2 ([0-9]+)"; }

# The number of the last tick.
last_tick() { last_said "$1" '^guest: tick ([0-9]+) bad '; }

# guest_doings NAME: where its processors are and what QEMU's threads have used, twice, for a stall that is to be
# explained.
guest_doings() {
	local task pid
	read -r pid <"$work/$1.pid"
	for _ in 1 2; do
		hmp "$1" "info status" "info registers -a" "info lapic" |
			grep -oE '^VM status.*|^RIP=.*|^CR2.*|LVTT\s.*|^(ISR|IRR|PPR).*'
		for task in "/proc/$pid/task"/*; do
			echo "$(<"$task/comm"): $(cut -d' ' -f3,14,15 "$task/stat") $(<"$task/wchan")"
		done
		sleep 2
	done
}

# guest_goes_on NAME: it ticks on, and has found no bad page.
guest_goes_on() {
	local from i console tries=$((200 * ${KVMSNAP_SLOW:-1}))
	from=$(last_tick "$1")
	for ((i = 0; i < tries; i++)); do
		[ "$(last_tick "$1")" -gt "$((${from:-0} + 2))" ] 2>/dev/null && break
		sleep 0.1
	done
	console "$1"
	if [ "$i" = "$tries" ]; then
		echo "guest $1 does not go on after tick ${from:-none}; its console ends:" >&2
		tail -n 5 "$work/$1.console" >&2
		guest_doings "$1" >&2
		return 1
	fi
	if [[ ${console[*]} =~ bad\ [1-9] ]]; then
		echo "guest $1 found bad pages: $(grep -m1 'bad [1-9]' "$work/$1.console")" >&2
		return 1
	fi
}

# dm_load TABLE: what the device-mapper device of the tests is from now on.
dm_load() {
	dmsetup suspend "$KVMSNAP_DM"
	dmsetup reload "$KVMSNAP_DM" --table "$1"
	dmsetup resume "$KVMSNAP_DM"
}

# writes_take MS: each write to that device from now on; 0 for what the disk takes.
writes_take() {
	local disk sectors
	disk=$(disk 1)
	sectors=$(blockdev --getsz "$disk")
	if [ "$1" = 0 ]; then
		dm_load "0 $sectors linear $disk 0"
	else
		modprobe dm-delay
		dm_load "0 $sectors delay $disk 0 0 $disk 0 $1"
	fi
}

# leave_free DIR BYTES: $DIR/filler takes the rest of its file system.  What was removed is free once the file system
# was frozen: xfs frees a file's extents behind the scenes, and a sync does not wait for that.
leave_free() {
	fsfreeze -f "$1"
	fsfreeze -u "$1"
	# All that root may have: more than others on ext4.
	fallocate -l $(($(stat -f -c '%f * %S' "$1") - $2)) "$1/filler"
}

# No process of kvmsnap's follows a VM any more.
keepers_end() {
	pkill -x kvmsnap-keep || true
	while pgrep -x 'kvmsnap-keep|kvmsnap-guard' >/dev/null; do sleep 0.1; done
}

guest_kill() {
	local pid
	read -r pid 2>/dev/null <"$work/$1.pid" || return 0
	kill -9 "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
	# It may be another case's child.
	await 10 gone "/proc/$pid" || true
	rm -f "$work/$1".{qmp,qmp2,pid}
	return 0
}

# qmp NAME 'JSON COMMAND'...: what QEMU answers, and its events meanwhile, on the tests' own
# socket.
qmp() { "$libexec/qmp" "$work/$1.qmp2" "${@:2}"; }

# hmp NAME LINE...: what the human monitor says.
hmp() { "$libexec/qmp" -h "$work/$1.qmp2" "${@:2}"; }

# Nothing where there is no QEMU any more.
guest_status() {
	local said
	said=$(qmp "$1" '{"execute":"query-status"}' 2>/dev/null) || true
	# Its last line; others are events.
	[[ ! ${said##*$'\n'} =~ ^\{\"return\".*\"status\":\ \"([a-z-]+)\" ]] || echo "${BASH_REMATCH[1]}"
}

# feign_end NAME FILE: the state of the stopped guest's clock, whose memory the guest may write as it likes,
# looks as if it ended all device state.  FILE, in which it was saved, tells the number of its section.
feign_end() {
	local at byte i=96
	tail -c 4M "$2" >"$work/tail"
	at=$(grep -obUa mc146818rtc "$work/tail" | tail -1 | cut -d: -f1)
	[ -n "$at" ]
	# A footer, the end, an empty description.
	for byte in 126 $(od -An -tu1 -j $((at - 5)) -N 4 "$work/tail") 0 6 0 0 0 0; do
		# Two empty lines.
		hmp "$1" "o/b 0x70 $i" "o/b 0x71 $byte" | uniq -c | grep -qx ' *2 '
		i=$((i + 1))
	done
}

# same_ram NAME FILE [BYTES]: the RAM of a stopped guest, read by ramcmp and not by the
# module, equals the file byte for byte.  BYTES: see ramcmp.c.
same_ram() {
	hmp "$1" "info ramblock" | "$libexec/ramcmp" "$(<"$work/$1.pid")" "$2" ${3:+"$3"}
}

# The flavour of incoming_start whose turn it is, from case to case.
flavour_in_turn() {
	case $((tap_count % 2)) in
	0) echo plain ;;
	*) echo multifd ;;
	esac
}

# incoming_start NAME FILE FLAVOUR ARG...: stock QEMU that has restored FILE and is paused; FLAVOUR
# is plain, or multifd for that with direct I/O.
incoming_start() {
	local name=$1 file=$2 flavour=$3
	shift 3
	# shellcheck disable=SC2086
	qemu_start "$name" -kernel "$(guest_kernel)" -initrd "$(guest_initrd ${GUEST_MODULES:-})" \
		-append "console=ttyS0" "$@" -S -global migration.mapped-ram=on -incoming defer
	local load="{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"file:$file\"}}"
	case $flavour in
	plain) qmp "$name" "$load" ;;
	multifd)
		qmp "$name" '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"multifd","state":true}]}}' \
			'{"execute":"migrate-set-parameters","arguments":{"multifd-channels":4,"direct-io":true}}' "$load" >"$work/said"
		[ "$(grep -c '"return"' "$work/said")" = 3 ]
		;;
	esac
	local i status
	for i in $(seq $((300 * ${KVMSNAP_SLOW:-1}))); do
		status=$(guest_status "$name")
		[ "$status" = paused ] && return 0
		[ "$status" = inmigrate ] || break
		sleep 0.1
	done
	echo "restore failed, status '$status':" >&2
	cat "$work/$name.log" >&2
	return 1
}

# restored FILE FLAVOUR ARG...: guest b, restored from FILE, has the RAM that is in it, and goes on.
# FLAVOUR: see incoming_start.
restored() {
	incoming_start b "$@"
	same_ram b "$1" 12
	qmp b '{"execute":"cont"}' >/dev/null
	wait_for b 'guest: tick' 60
	guest_goes_on b
}

restored_goes_on() {
	restored "$@"
	guest_kill b
}

# without_thp COMMAND...: memory that is mapped meanwhile has a soft-dirty bit for each 4 KiB.
without_thp() {
	local file=/sys/kernel/mm/transparent_hugepage/enabled before
	before=$(sed 's/.*\[\(.*\)\].*/\1/' $file)
	echo never >$file
	"$@"
	echo "$before" >$file
}

# read_port SOCKET FLAG: of a virtio-serial port.  The reader has it wait, says so by FLAG, and on SIGUSR1 reads on
# for a moment; each byte is the one before plus 1, as 0 is 250.
read_port() {
	exec perl -MSocket -e 'my ($path, $flag, $slow) = @ARGV;
		my ($last, $go) = (undef, 0);
		sub rest { select(undef, undef, undef, $_[0] * $slow) }
		sub there { my $n = pack "i", 0; ioctl(S, 0x541b, $n) or die "FIONREAD: $!\n"; unpack "i", $n }
		$SIG{USR1} = sub { $go = 1 };
		socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($path)) or die "$!\n";
		for (;; $go = 0) {
			for (my ($n, $before) = (0, -1); !$go && ($n == 0 || $n != $before); rest(0.2)) {
				($n, $before) = (there(), $n);
			}
			open(F, ">", $flag) && close(F) or die "$flag: $!\n";
			rest(0.01) until $go;
			unlink $flag;
			for (1 .. 20) {
				my $bytes = "";
				there() && (sysread(S, $bytes, 32768) or die "the port is closed\n");
				for (unpack "C*", $bytes) {
					die "$_ behind $last\n" if defined $last && $_ != ($last + 1) % 251;
					$last = $_;
				}
				rest(0.01);
			}
		}' "$1" "$2" "${KVMSNAP_SLOW:-1}"
}

# resident FILE: bytes of it that are in the page cache.
resident() {
	perl -e 'open(F, "<", $ARGV[0]) or die; my $n = -s F;
		my $at = syscall(9, 0, $n, 1, 1, fileno F, 0);	# mmap: readable, shared
		my $cached = "\0" x (($n + 4095) / 4096);
		syscall(27, $at, $n, $cached) == 0 or die "mincore: $!\n";
		print 4096 * ($cached =~ tr/\1//), "\n"' "$1"
}

# disk N: the device of the machine's N-th --disk.
disk() {
	local d
	for d in /sys/block/vd*; do
		[ "$(cat "$d/serial")" = "disk$1" ] && echo "/dev/${d##*/}" && return
	done
	echo "no disk $1 in this machine" >&2
	return 1
}

# mkfs_mount TYPE DEVICE DIR
mkfs_mount() {
	modprobe -q "$1" || true
	wipefs -qa "$2"
	case $1 in
	# Nothing is put off until the device may be held.
	ext4) mkfs.ext4 -qF -E lazy_itable_init=0,lazy_journal_init=0 "$2" ;;
	xfs) mkfs.xfs -qf "$2" ;;
	btrfs) mkfs.btrfs -qf "$2" ;;
	esac || return 1
	mkdir -p "$3"
	mount -t "$1" "$2" "$3"
}

# TAP.  tap_case NAME FUNCTION ARG...: a function that returns 0 passes.  tap_end prints the plan and
# leaves.  A script's -t TEXT: only cases with that in their name.  What a case writes to descriptor 3
# is seen at once, by whoever waits.
tap_count=0 tap_failed=0 tap_only=
[ "${1:-}" != -t ] || tap_only=$2
tap_case() {
	local name=$1 log=$work/tap.log status
	shift
	case $name in *"$tap_only"*) ;; *) return ;; esac
	tap_count=$((tap_count + 1))
	# Not in a condition, where set -e would not count.
	(
		set -eE
		trap 'echo "line $LINENO: $BASH_COMMAND: status $?" >&2' ERR
		"$@"
	) 3>&1 >"$log" 2>&1
	status=$?
	if [ $status = 0 ]; then
		echo "ok $tap_count - $name"
		return
	fi
	sed 's/^/# /' "$log" | tail -30
	echo "not ok $tap_count - $name"
	rm -f "$work"/*.how
	tap_failed=$((tap_failed + 1))
}

tap_end() {
	echo "1..$tap_count"
	exit $((tap_failed != 0))
}
