#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The command as a user meets it: reports, JSON, refusals, and what each failure leaves
# behind: the guest as it was, no partial file, an existing file untouched.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
dm=${KVMSNAP_DM:?}
trap 'dmsetup resume $dm; guest_kill a; guest_kill s' EXIT
qmp=$work/a.qmp

# refuses TEXT ARG...: `kvmsnap ARG...` fails with one line on stderr that holds TEXT.
refuses() {
	local text=$1 status=0
	shift
	kvmsnap "$@" >"$work/out" 2>"$work/err" || status=$?
	[ $status = 1 ] || { echo "status $status: kvmsnap $*"; cat "$work/err"; return 1; }
	grep -q '^kvmsnap: ' "$work/err" && grep -qF -- "$text" "$work/err" &&
		[ "$(wc -l <"$work/err")" = 1 ] || { echo "kvmsnap $*: expected '$text', got:"; cat "$work/err"; return 1; }
}

# Nothing of a failed save is left.
as_before() {
	[ ! -e "$dir/snap.partial" ] || { echo "a partial file is left"; return 1; }
	[ "$(guest_status a)" = "${1:-running}" ] || { echo "the guest is $(guest_status a)"; return 1; }
	await 5 module_unused || { echo "the module is still in use"; return 1; }
}

usage_errors() {
	local args
	for args in "" "nonsense" "save" "save --qmp x" "save --output x" "save --qmp x --output y --fd 1" \
		"save --qmp x --output y --sync maybe" "save --qmp x --fd x" "info" "info a b" \
		"verify" "status x" "top x" "top --count 0" "top --interval 0" "save --qmp x --output y z" "save --what"; do
		local status=0
		# shellcheck disable=SC2086
		kvmsnap $args >/dev/null 2>"$work/err" || status=$?
		[ $status = 2 ] || { echo "kvmsnap $args: status $status"; return 1; }
		grep -q usage: "$work/err"
	done
	kvmsnap --help | grep -q '^  save'
	kvmsnap save --help | grep -q -- --stay-stopped
}

no_qemu() {
	refuses "No such file" save --qmp "$work/none" --output "$dir/snap"
	refuses "start QEMU with -qmp unix:" save --qmp "$work/none" --output "$dir/snap"
	# Something that listens and is not QEMU.
	socat "UNIX-LISTEN:$work/other,fork" EXEC:'echo hello' & local pid=$!
	# Flags of one that listens.
	await 10 grep -q "00010000.* $work/other\$" /proc/net/unix
	refuses "not JSON" save --qmp "$work/other" --output "$dir/snap"
	kill $pid
	# Another client is connected.
	socat -u "UNIX-CONNECT:$qmp" - >"$work/greeting" & pid=$!
	await 10 grep -q QMP "$work/greeting"
	refuses "another client" save --qmp "$qmp" --output "$dir/snap"
	# That one, and another, are still in QEMU's queue, which has room for no more.
	socat -u "UNIX-CONNECT:$qmp" - >"$work/greeting" & pid+=" $!"
	sleep 1
	refuses "others wait" save --qmp "$qmp" --output "$dir/snap"
	# shellcheck disable=SC2086
	kill $pid
	sleep 1
	as_before
}

no_module() {
	rmmod kvmsnap
	refuses "modprobe kvmsnap" save --qmp "$qmp" --output "$dir/snap"
	refuses "load it" status
	modprobe kvmsnap
	as_before
}

wrong_places() {
	refuses "No such file" save --qmp "$qmp" --output "$dir/no/such/snap"
	refuses "neither a file nor" save --qmp "$qmp" --output "$dir"
	refuses "neither a file nor" save --qmp "$qmp" --output /dev/null
	refuses "names in .partial" save --qmp "$qmp" --output "$dir/snap.partial"
	mkdir "$dir/gone"
	(cd "$dir/gone" && rmdir "$dir/gone" && refuses "the working directory" save --incremental --qmp "$qmp" --output snap)
	refuses "tmpfs" save --qmp "$qmp" --output /dev/shm/snap
	[ ! -e /dev/shm/snap.partial ]
	mkdir "$work/lower" "$dir/upper" "$dir/work" "$work/merged"
	mount -t overlay -o "lowerdir=$work/lower,upperdir=$dir/upper,workdir=$dir/work" overlay "$work/merged"
	refuses "overlayfs" save --qmp "$qmp" --output "$work/merged/snap"
	umount "$work/merged"
	rm -rf "$work/lower" "$work/merged" "$dir/upper" "$dir/work"
	refuses "not open for writing" save --qmp "$qmp" --fd 0 </dev/null
	refuses "appending" save --qmp "$qmp" --fd 7 7>>"$dir/x"
	refuses "Bad file descriptor" save --qmp "$qmp" --fd 77
	rm -f "$dir/x"
	echo content >"$dir/snap"
	refuses "--force" save --qmp "$qmp" --output "$dir/snap"
	grep -qx content "$dir/snap"
	rm "$dir/snap"
	ln -s "/dev/mapper/$dm" "$dir/snap"
	refuses "link to a block device" save --qmp "$qmp" --output "$dir/snap" --force
	rm "$dir/snap"
	as_before
}

report() {
	kvmsnap save --qmp "$qmp" --output "$dir/snap" >"$work/out"
	grep -Eq '^saved .*snap: .* of .* RAM in .* s \(.*/s\)' "$work/out"
	grep -Eq '^guest stopped for [0-9.]+ ms' "$work/out"
	as_before
	kvmsnap info "$dir/snap" | grep -q pc.ram
	kvmsnap info --json "$dir/snap" | jq -e '.blocks | map(.name) | contains(["pc.ram"])' >/dev/null
	# Behind the stream there is our record, in a hole.
	[ "$(kvmsnap info --json "$dir/snap" | jq .bytes)" -lt "$(stat -c %s "$dir/snap")" ]
	kvmsnap info --json "$dir/snap" | jq -e '.generation == 1 and (now - .time | fabs) < 600'
	kvmsnap verify --json "$dir/snap" | jq -e '.whole' >/dev/null
	[ "$(stat -c %a "$dir/snap")" = 600 ]
	rm "$dir/snap"
}

json_report() {
	kvmsnap save --qmp "$qmp" --output "$dir/snap" --json >"$work/out"
	jq -e '.written_bytes > 0 and .paused_seconds > 0 and .untouched_bytes > 0 and
	       .ram_bytes >= .written_bytes + .zero_bytes + .untouched_bytes and .phases.ram > 0' "$work/out" >/dev/null
	[ "$(jq .file_bytes "$work/out")" = "$(stat -c %s "$dir/snap")" ]
	# What is in the file takes disk blocks, and not much else does.
	local blocks
	blocks=$(($(stat -c %b "$dir/snap") * 512))
	[ $blocks -lt $(($(jq .written_bytes "$work/out") + (8 << 20))) ]
	rm "$dir/snap"
}

progress() {
	# On a terminal the progress line is written over and over.
	mkfs_mount ext4 "/dev/mapper/$dm" "$dir/held"
	kvmsnap save --qmp "$qmp" --output "$dir/held/snap" --quiet
	sync
	dmsetup suspend --noflush --nolockfs "$dm"
	(sleep 3; dmsetup resume "$dm") &
	script -qec "kvmsnap save --qmp $qmp --output $dir/held/snap --force" /dev/null >"$work/out"
	wait
	umount "$dir/held"
	grep -Eq 'saving +[0-9]+%  .*/s' "$work/out"
	grep -q 'saved .*held/snap' "$work/out"
	as_before
}

# Progress has to wait for a terminal whose output somebody has stopped (Ctrl-S), and nothing else.
stopped_terminal() {
	cat >"$work/on-tty" <<-EOT
		perl -e 'ioctl(STDERR, 0x540a, 0) or die'
		timeout $((60 * ${KVMSNAP_SLOW:-1})) kvmsnap save --live --bandwidth 30M --allow-downtime 60s --qmp $qmp --output $dir/snap >$work/out
		echo \$? >$work/status
		perl -e 'ioctl(STDERR, 0x540a, 1)'
	EOT
	script -qec "sh $work/on-tty" /dev/null
	[ "$(cat "$work/status")" = 0 ]
	kvmsnap verify "$dir/snap"
	rm "$dir/snap"
	as_before
}

force_replaces() {
	echo content >"$dir/snap"
	kvmsnap save --qmp "$qmp" --output "$dir/snap" --force
	kvmsnap verify "$dir/snap"
	rm "$dir/snap"
}

descriptor() {
	exec 9<>"$dir/snap"
	kvmsnap save --qmp "$qmp" --fd 9 --stay-stopped --quiet >"$work/out"
	[ ! -s "$work/out" ]
	# Whoever keeps it open need not wait.
	kvmsnap save --qmp "$qmp" --fd 8 --force --stay-stopped --quiet 8<>"$dir/snap"
	same_ram a "$dir/snap"
	as_before paused
	# What it is about to write over is not compacted.
	qmp a '{"execute":"cont"}' >/dev/null
	kvmsnap save --qmp "$qmp" --fd 9 --force --live --bandwidth 1M --quiet &
	await 10 session_is "running 1"
	refuses "is being written" compact "$dir/snap"
	kill -INT $!
	wait $! && return 1 || [ $? = 130 ]
	exec 9>&-
	as_before
	qmp a '{"execute":"stop"}' >/dev/null
	# Paused it was, and paused it stays.
	kvmsnap save --qmp "$qmp" --output "$dir/snap2"
	as_before paused
	same_ram a "$dir/snap2"
	qmp a '{"execute":"cont"}' >/dev/null
	as_before
	rm "$dir/snap" "$dir/snap2"
}

block_device() {
	dd of="/dev/mapper/$dm" bs=1M count=300 iflag=fullblock status=none conv=fsync < <(yes)
	kvmsnap save --qmp "$qmp" --output "/dev/mapper/$dm" --stay-stopped
	same_ram a "/dev/mapper/$dm"
	kvmsnap verify "/dev/mapper/$dm"
	qmp a '{"execute":"cont"}' >/dev/null
	# One that is too small, one that is mounted.
	refuses "are needed" save --qmp "$qmp" --output "$KVMSNAP_SMALL"
	refuses "in use" save --qmp "$qmp" --output "$(findmnt -no SOURCE "$dir")"
	as_before
}

full_disk() {
	truncate -s 300M "$dir/full.img"
	mkfs.ext4 -qF "$dir/full.img"
	mkdir -p "$dir/full"
	mount -o loop "$dir/full.img" "$dir/full"
	dd if=/dev/zero of="$dir/full/ballast" bs=1M count=220 status=none
	local status=0
	refuses "No space left" save --qmp "$qmp" --output "$dir/full/snap" || status=1
	[ ! -e "$dir/full/snap.partial" ] || status=2
	# Room again, saved again.
	rm "$dir/full/ballast"
	kvmsnap save --qmp "$qmp" --output "$dir/full/snap" || status=3
	umount "$dir/full"
	rm -r "$dir/full" "$dir/full.img"
	as_before
	return $status
}

disk_error() {
	local dev
	dev=$(dmsetup table "$dm" | cut -d' ' -f4)
	local size
	size=$(blockdev --getsz "/dev/mapper/$dm")
	dmsetup suspend "$dm"
	printf '0 65536 linear %s 0\n65536 128 error\n65664 %s linear %s 65664\n' "$dev" $((size - 65664)) "$dev" |
		dmsetup reload "$dm"
	dmsetup resume "$dm"
	local status=0
	refuses "put/output error" save --qmp "$qmp" --output "/dev/mapper/$dm" || status=1
	dm_load "0 $size linear $dev 0"
	as_before
	return $status
}

write_in_flight() { [ "$(kvmsnap status --json | jq '.[0].in_flight // 0')" -gt 0 ]; }

# A save that is held up by its disk, in the background: its process number in $save.  The
# file system is not frozen, and has read what it needs: only the pages' writes hang.
held_save() {
	kvmsnap save --qmp "$qmp" --output "$dir/snap" --quiet
	rm "$dir/snap"
	sync
	dmsetup suspend --noflush --nolockfs "$dm"
	kvmsnap save --qmp "$qmp" --output "$dir/snap" >"$work/out" 2>"$work/err" &
	save=$!
	await 10 write_in_flight || { echo "no write is in flight"; cat "$work/err"; return 1; }
}

interrupted() {
	mkfs_mount ext4 "/dev/mapper/$dm" "$dir/held"
	local save_dir=$dir status=0
	dir=$dir/held
	held_save || status=1
	kill -INT $save
	sleep 0.5
	dmsetup resume "$dm"
	wait $save && status=2 || [ $? = 130 ] || status=3
	grep -qx 'kvmsnap: interrupted' "$work/err" || status=4
	as_before || status=5
	dir=$save_dir
	umount "$dir/held"
	return $status
}

# Another client lets the guest go on in the middle: the file can't be right.
foreign_resume() {
	mkfs_mount ext4 "/dev/mapper/$dm" "$dir/held"
	local save_dir=$dir status=0
	dir=$dir/held
	held_save || status=1
	qmp a '{"execute":"cont"}' >/dev/null
	dmsetup resume "$dm"
	wait $save && status=2 || [ $? = 1 ] || status=3
	grep -q 'resumed or reset by another client' "$work/err" || status=4
	[ ! -e "$dir/snap" ] || status=5
	as_before || status=6
	dir=$save_dir
	umount "$dir/held"
	return $status
}

killed_helper() {
	mkfs_mount ext4 "/dev/mapper/$dm" "$dir/held"
	local save_dir=$dir status=0
	dir=$dir/held
	held_save || status=1
	guest_is a paused || status=2
	kill -9 $save
	wait $save || true
	# The guest goes on at once, the disk is still held.
	await 5 guest_is a running && guest_goes_on a || status=3
	dmsetup resume "$dm"
	await 5 gone "$dir/snap.partial" && as_before || status=4
	dir=$save_dir
	umount "$dir/held"
	return $status
}

killed_qemu() {
	mkfs_mount ext4 "/dev/mapper/$dm" "$dir/held"
	local save_dir=$dir status=0
	dir=$dir/held
	held_save || status=1
	guest_kill a
	dmsetup resume "$dm"
	wait $save && status=2
	grep -c . "$work/err" | grep -qx 1 || status=3
	cat "$work/err"
	[ ! -e "$dir/snap.partial" ] || status=4
	await 5 module_unused || status=5
	dir=$save_dir
	umount "$dir/held"
	guest_start a "fill=32 tick=100" -m 160M
	return $status
}

stale_partial() {
	echo leftover >"$dir/snap.partial"
	kvmsnap save --qmp "$qmp" --output "$dir/snap"
	kvmsnap verify "$dir/snap"
	rm "$dir/snap"
	# One that is being written is not touched.
	exec 8>"$dir/snap.partial"
	flock 8
	refuses "another save" save --qmp "$qmp" --output "$dir/snap"
	[ -e "$dir/snap.partial" ]
	exec 8>&-
	rm "$dir/snap.partial"
	as_before
}

blocked_migration() {
	# ivshmem, like VFIO, says itself that it can't be migrated.
	guest_kill s
	qemu_start s -m 64M -object memory-backend-ram,id=shm,size=1M,share=on -device ivshmem-plain,memdev=shm,master=off -S ||
		return 1
	local status=0
	refuses "can't be saved" save --qmp "$work/s.qmp" --output "$dir/snap" || status=$?
	guest_kill s
	return $status
}

# Memory that a guest has not used costs next to nothing: 4 GiB like 160 MiB.  By turns, so that what
# else the machine does slows both, and the quickest of three counts.
# To a disk: a file system has work of its own with each of the larger guest's extents, twice as many.
idle_guest() {
	local small large which from i status=0
	rm -f "$work/small.all" "$work/large.all"
	echo 1 >/proc/sys/vm/overcommit_memory
	guest_start s "fill=32 tick=100" -m 4G
	for i in 1 2 3; do
		for which in small large; do
			[ $which = small ] && from=$qmp || from=$work/s.qmp
			kvmsnap save --qmp "$from" --output "$(disk 3)" --json >>"$work/$which.all" || status=1
		done
	done
	guest_kill s
	[ $status = 0 ]
	for which in small large; do
		jq -s 'min_by(.phases.ram)' "$work/$which.all" >"$work/$which"
	done
	jq -c '{ram_bytes, written_bytes, untouched_bytes, ram: .phases.ram}' "$work/small" "$work/large"
	small=$(jq .written_bytes "$work/small") large=$(jq .written_bytes "$work/large")
	[ "$large" -lt $((small + (160 << 20))) ]
	jq -e '.untouched_bytes > 3.5 * 1073741824' "$work/large" >/dev/null
	# The rate over what is written, half of the small guest's at least.
	jq -se '.[1].phases.ram / .[1].written_bytes < 2 * .[0].phases.ram / .[0].written_bytes' \
		"$work/small" "$work/large" >/dev/null
}

damaged_files() {
	kvmsnap save --qmp "$qmp" --output "$dir/snap"
	local size at
	size=$(kvmsnap info --json "$dir/snap" | jq .bytes)
	for at in 0 3 7 20 100 2000000 $((size / 2)) $((size - 1000)) $((size - 1)); do
		cp --sparse=always "$dir/snap" "$dir/cut"
		truncate -s $at "$dir/cut"
		refuses "$dir/cut" verify "$dir/cut"
		refuses "$dir/cut" info "$dir/cut"
	done
	# Four thousand million capabilities; a machine type that would write on the terminal.
	cp --sparse=always "$dir/snap" "$dir/cut"
	at=$(grep -abo -m1 mapped-ram "$dir/cut" | head -1 | cut -d: -f1)
	printf '\377\377\377\377' | dd of="$dir/cut" bs=1 seek=$((at - 5)) conv=notrunc status=none
	refuses "too many capabilities" info "$dir/cut"
	cp --sparse=always "$dir/snap" "$dir/cut"
	printf '\033' | dd of="$dir/cut" bs=1 seek=13 conv=notrunc status=none
	refuses "machine type" info "$dir/cut"
	head -c 100000 /dev/urandom >"$dir/cut"
	refuses "not a whole mapped-ram file" info "$dir/cut"
	: >"$dir/cut"
	refuses "not a whole mapped-ram file" verify "$dir/cut"
	rm "$dir/snap" "$dir/cut"
}

qemu_made_file() {
	qmp a '{"execute":"stop"}' \
		'{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"mapped-ram","state":true}]}}' \
		"{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"file:$dir/snap\"}}" >/dev/null
	await 20 migration_is a completed
	kvmsnap verify "$dir/snap"
	kvmsnap info "$dir/snap" | grep -q pc.ram
	# After a migration the guest is QEMU's no more to save.
	refuses "postmigrate" save --qmp "$qmp" --output "$dir/snap2"
	rm "$dir/snap"
	guest_kill a
	guest_start a "fill=32 tick=100" -m 160M
}

# perf looks at each file of each module that there is, which takes half a minute in the machine: here
# it finds none.
tracing() {
	unshare -m sh -c 'mount -t tmpfs none "/lib/modules/$(uname -r)/kernel" && exec "$@"' sh \
		perf record -q -B -N --synth no -e 'kvmsnap:*' -a -o "$work/perf.data" -- \
		kvmsnap save --qmp "$qmp" --output "$dir/snap" --json >"$work/out" 2>"$work/err" || { cat "$work/err"; return 1; }
	perf script -i "$work/perf.data" 2>/dev/null >"$work/perf.txt"
	# Every byte that the module wrote is in the trace, submitted and completed.
	local small submitted completed
	submitted=$(sed -n 's/.*write_submit:.* bytes=\([0-9]*\).*/\1/p' "$work/perf.txt" | paste -sd+ | bc)
	completed=$(sed -n 's/.*write_complete:.* result=\([0-9]*\).*/\1/p' "$work/perf.txt" | paste -sd+ | bc)
	small=$(jq .written_bytes "$work/out")
	echo "submitted $submitted completed $completed reported $small"
	[ "$submitted" = "$completed" ]
	[ "$submitted" -le "$small" ]
	[ "$submitted" -ge $((small - (1 << 20))) ]
	"$libexec/write-histograms" <"$work/perf.txt" >"$work/out"
	cat "$work/out"
	grep -q 'latency' "$work/out" && grep -q 'size' "$work/out"
	rm "$dir/snap"
}

# Events tell all of a live save, in their order and without a gap; and top shows it.
events() {
	local follower topper i
	kvmsnap status --follow --json >"$work/events" &
	follower=$!
	kvmsnap top --interval 0.05 --count 100 >"$work/top" &
	topper=$!
	await 10 listens $follower
	kvmsnap save --live --max-downtime 1us --allow-downtime 60s --qmp "$qmp" --output "$dir/snap" --quiet
	rm "$dir/snap"
	await 5 grep -q '"event":"closed"' "$work/events"
	kill $follower
	wait $topper
	wait || true
	jq -r '"\(.seq) \(.event) \(.phase) \(.pass)"' "$work/events"
	jq -se '[.[].lost] | add == 0' "$work/events" >/dev/null
	jq -se '[.[] | .event] | index("pass begins") == 1 and .[-1] == "closed"' "$work/events" >/dev/null
	jq -se '[.[] | select(.event == "phase") | .phase] | . == (map(select(. == "live")) + ["stopped", "resumed", "done"])' \
		"$work/events" >/dev/null
	jq -se '([.[] | select(.event == "pass begins")] | length) == ([.[] | select(.event == "pass ends")] | length)' \
		"$work/events" >/dev/null
	jq -se '.[-1].pause_seconds > 0 and .[-1].bytes_written >= 0' "$work/events" >/dev/null
	grep -m3 ' live ' "$work/top"
	grep -m1 'RAM \[.*[@%#*]' "$work/top"
}

guest_start a "fill=32 tick=100" -m 160M -object memory-backend-ram,id=spare,size=1M || exit 1
tap_case "wrong usage" usage_errors
tap_case "no QEMU, not QEMU, another client" no_qemu
tap_case "module not loaded" no_module
tap_case "places that can't hold a snapshot" wrong_places
tap_case "report" report
tap_case "report as JSON" json_report
tap_case "progress on a terminal" progress
tap_case "a terminal that is stopped" stopped_terminal
tap_case "--force replaces" force_replaces
tap_case "--fd, --stay-stopped, a paused guest" descriptor
tap_case "block device" block_device
tap_case "full disk" full_disk
tap_case "disk error" disk_error
tap_case "Ctrl-C" interrupted
tap_case "another client resumes the guest" foreign_resume
tap_case "kill -9 of the helper" killed_helper
tap_case "kill -9 of QEMU" killed_qemu
tap_case "partial files, left over and in use" stale_partial
tap_case "a VM that QEMU says can't be migrated" blocked_migration
tap_case "an idle 4 GiB guest costs what it uses" idle_guest
tap_case "damaged files" damaged_files
tap_case "files that QEMU made" qemu_made_file
tap_case "every write in a perf trace" tracing
tap_case "events, and top" events
tap_end
