#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kvmsnap restore: QEMU with what a file has, loaded or mapped from it; and what is not like the VM
# that was saved is told before anything is loaded.  kvmsnap receive: QEMU's own classic stream, live
# and stopped, as such a file.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
# Its QEMU too, when the one that has started it is not there to pass a signal on.
restored_kill() {
	local qemu
	for qemu in "$work"/*.qemu; do
		[ -e "$qemu" ] || continue
		kill -9 "$(cat "$qemu")" 2>/dev/null || true
		rm -f "$qemu"
	done
	guest_kill b
	guest_kill c
}
trap 'dmsetup resume $KVMSNAP_DM; restored_kill; guest_kill a; keepers_end' EXIT

mem=160
work_args="fill=24 zero=4 tick=100 writers=2 write=3 rest=20"
GUEST_RING=1024

# begin ARG...: guest a, which nothing follows, and no files.
begin() {
	restored_kill
	keepers_end
	rm -f "$dir"/snap* "$dir"/*.snap
	guest_again a "$work_args" "$@"
	guest_goes_on a
}

# A file to restore from, with checksums; its guest rests.
make_file() {
	begin "$@"
	kvmsnap save --qmp "$work/a.qmp" --output "$dir/snap" --checksum
	qmp a '{"execute":"stop"}' >/dev/null
}

# restore NAME OPTION... -- ARG...: guest NAME by kvmsnap restore; paused.
restore() {
	local name=$1 options=() i
	shift
	while [ "$1" != -- ]; do options+=("$1"); shift; done
	shift
	# shellcheck disable=SC2086
	QEMU="kvmsnap restore ${options[*]} -- qemu-system-x86_64" \
		qemu_start "$name" -kernel "$(guest_kernel)" -initrd "$(guest_initrd ${GUEST_MODULES:-})" \
		-append "console=ttyS0 quiet mitigations=off $work_args" "$@" -S
	# The one that writes the console is QEMU, not its shadow.
	pgrep -P "$(cat "$work/$name.pid")" -f qemu-system >"$work/$name.qemu"
	for ((i = 0; i < 200 * ${KVMSNAP_SLOW:-1}; i++)); do
		[ "$(guest_status "$name")" = paused ] && return
		kill -0 "$(cat "$work/$name.pid")" 2>/dev/null || break
		sleep 0.1
	done
	cat "$work/$name.log" >&2
	return 1
}

# same NAME FILE: its memory is what the file has.
same() {
	hmp "$1" "info ramblock" | "$libexec/ramcmp" "$(cat "$work/$1.qemu")" "$2" 12
}

goes_on() {
	qmp "$1" '{"execute":"cont"}' >/dev/null
	wait_for "$1" 'guest: tick' 60
	guest_goes_on "$1"
}

ends() {
	qmp "$1" '{"execute":"quit"}' >/dev/null
	wait "$(<"$work/$1.pid")"
}

loaded() {
	local option
	make_file "$@"
	for option in "--channels 0" "--channels 2" ""; do
		# shellcheck disable=SC2086
		restore b "$dir/snap" $option -- "$@"
		same b "$dir/snap"
		goes_on b
		ends b
	done
}

# All that the file has comes into the page cache, and for its holes only what QEMU puts into RAM when it starts:
# the guest's kernel and initramfs, from which the guest that was saved had taken the memory back.
warmed() {
	local blocks cached i own
	own=$(($(stat -Lc %s "$(guest_kernel)") + $(stat -Lc %s "$(guest_initrd)")))
	blocks=$(($(stat -c '%b * %B' "$dir/snap")))
	for ((i = 0; i < 100 * ${KVMSNAP_SLOW:-1}; i++)); do
		cached=$(resident "$dir/snap")
		[ "$cached" -lt $((blocks * 99 / 100)) ] || break
		sleep 0.1
	done
	echo "$blocks bytes on the disk, $cached in the page cache"
	[ "$cached" -ge $((blocks * 99 / 100)) ]
	[ "$cached" -le $((blocks + own)) ]
	[ $((blocks + own)) -lt $((mem << 20)) ]
}

# instant [--reset] ARG...: two guests from one file, which stays what it is; one is reset, and boots.
instant() {
	local reset=$1
	[ "$reset" != --reset ] || shift
	make_file "$@"
	echo 1 >/proc/sys/vm/drop_caches
	[ "$(resident "$dir/snap")" -lt $((1 << 23)) ]
	restore b "$dir/snap" --instant --warm -- "$@"
	warmed
	same b "$dir/snap"
	grep -q "$dir/snap" "/proc/$(cat "$work/b.qemu")/maps"
	restore c "$dir/snap" --instant -- "$@"
	goes_on b
	goes_on c
	kvmsnap verify "$dir/snap" | grep 'all as their checksums say'
	if [ "$reset" = --reset ]; then
		qmp b '{"execute":"system_reset"}' >/dev/null
		: >"$work/b.console"
		wait_for b 'guest: ready' 120
		guest_goes_on c
	fi
	ends b
	ends c
	kvmsnap verify "$dir/snap" | grep 'all as their checksums say'
}

# A block device that a guest is mapped from is not to be written over.
instant_from_device() {
	local dev=/dev/mapper/${KVMSNAP_DM:?}
	begin -m ${mem}M
	kvmsnap save --qmp "$work/a.qmp" --output "$dev"
	restore b "$dev" --instant -- -m ${mem}M
	# What it has not read yet is on the device only, and saved nevertheless.
	kvmsnap save --qmp "$work/b.qmp" --output "$dir/snap"
	same b "$dir/snap"
	goes_on b
	! kvmsnap save --qmp "$work/a.qmp" --output "$dev" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'restored from it with --instant' "$work/error"
	guest_goes_on b
	ends b
	kvmsnap save --qmp "$work/a.qmp" --output "$dev"
	# One that is not mapped from it leaves it alone, once it has loaded.
	restore b "$dev" -- -m ${mem}M
	kvmsnap save --qmp "$work/a.qmp" --output "$dev"
	goes_on b
	ends b
	# Without a record it would have to be copied first, beside it.
	dd if=/dev/zero of="$dev" bs=4096 seek="$(kvmsnap info --json "$dev" | jq '.bytes / 4096 | ceil')" count=1 conv=notrunc status=none
	! kvmsnap restore "$dev" --instant -- qemu-system-x86_64 -m ${mem}M 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'device without a record' "$work/error"
}

# QEMU answers nobody while it reads RAM, however long that takes: here more than half a minute, of a disk that
# does nothing.  What is read before is cached, as long as somebody has the device open.
loaded_slowly() {
	local dev=/dev/mapper/${KVMSNAP_DM:?} resumer
	begin -m ${mem}M
	kvmsnap save --qmp "$work/a.qmp" --output "$dev" --stay-stopped
	exec 9<"$dev"
	echo 1 >/proc/sys/vm/drop_caches
	kvmsnap info "$dev"
	dmsetup suspend "$KVMSNAP_DM"
	{ sleep 33; dmsetup resume "$KVMSNAP_DM"; } & resumer=$!
	restore b "$dev" --channels 0 -- -m ${mem}M
	wait $resumer
	exec 9<&-
	same b "$dev"
	goes_on b
	ends b
}

# Each generation of an appended file, and of QEMU's own making: copied, then mapped.
instant_of_others() {
	local n
	begin -m ${mem}M
	for n in 1 2; do
		kvmsnap save --incremental --qmp "$work/a.qmp" --output "$dir/vm.snap" --stay-stopped
		qmp a '{"execute":"cont"}' >/dev/null
		guest_goes_on a
	done
	kvmsnap save --last --qmp "$work/a.qmp" --output "$dir/vm.snap" --stay-stopped
	[ "$(kvmsnap list --json "$dir/vm.snap" | jq length)" = 3 ]
	restore b "$dir/vm.snap" --instant -- -m ${mem}M
	same_ram_of b a
	grep -q 'generation 3 .* was copied' "$work/b.log"
	goes_on b
	ends b
	restore b "$dir/vm.snap" --instant --generation 2 -- -m ${mem}M
	goes_on b
	ends b
	! restore b "$dir/vm.snap" --generation 7 -- -m ${mem}M 2>"$work/error" || return 1
	grep -q 'there is no generation 7' "$work/error"
	qmp a '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"mapped-ram","state":true}]}}' \
		"{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"file:$dir/snap\"}}" >/dev/null
	migrated a completed
	restore b "$dir/snap" --instant -- -m ${mem}M
	same b "$dir/snap"
	goes_on b
	ends b
	# It would send such files from now on.
	guest_kill a
}

# The stopped guests NAME and OTHER have the same main memory, but for the wall clock.
same_ram_of() {
	perl -e 'my @m = map { my ($pid, $at) = split /:/; open(my $f, "<", "/proc/$pid/mem") or die; seek($f, hex $at, 0); $f } @ARGV[0, 1];
		my $differ = 0;
		for (my $at = 0; $at < $ARGV[2] << 20; $at += 4096) {
			read($m[0], my $a, 4096) == 4096 && read($m[1], my $b, 4096) == 4096 or die "read: $!";
			$differ++ if $a ne $b;
		}
		die "$differ pages differ\n" if $differ > 1' \
		"$(cat "$work/$1.qemu"):$(ram_address "$1")" "$(cat "$work/$2.pid"):$(ram_address "$2")" $mem
}

ram_address() {
	hmp "$1" "info ramblock" | awk '$1 == "pc.ram" { print $8 ~ /^0x/ ? $8 : $7 }' | head -1
}

# refused TEXT ARG...: the file is of a pc with 2 vCPUs and a balloon.
refused() {
	local text=$1
	shift
	! timeout $((60 * ${KVMSNAP_SLOW:-1})) kvmsnap restore "$dir/snap" ${option:-} -- qemu-system-x86_64 -accel kvm -cpu host -display none -nodefaults \
		-serial null -parallel none -nic none "$@" -S >"$work/out" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q -e "$text" "$work/error"
	grep -q 'nothing was loaded' "$work/error"
}

mismatches() {
	local GUEST_MODULES="virtio_pci virtio_balloon" option
	make_file -machine pc -smp 2 -m ${mem}M -device virtio-balloon-pci -vga std
	for option in "" --instant; do
		refused "machine pc-q35.*-machine pc" -machine q35 -smp 2 -m ${mem}M -device virtio-balloon-pci -vga std
		[ -n "$option" ] || refused "RAM block pc.ram has 192.0 MiB, and 160.0 MiB in the file: -m 160M" \
			-machine pc -smp 2 -m 192M -device virtio-balloon-pci -vga std
		# Of which QEMU checks no length.
		refused "RAM block .*vga.vram has 8.0 MiB, and 16.0 MiB in the file" -machine pc -smp 2 -m ${mem}M \
			-device virtio-balloon-pci -vga std -global VGA.vgamem_mb=8
		refused "it has 3 vCPUs, and the file 2: -smp 2" -machine pc -smp 3 -m ${mem}M -device virtio-balloon-pci -vga std
		refused "virtio-balloon is missing" -machine pc -smp 2 -m ${mem}M -vga std
		refused "rng is not in the file" -machine pc -smp 2 -m ${mem}M -device virtio-balloon-pci -vga std -device virtio-rng-pci
	done
	! kvmsnap restore "$dir/snap" -- false 2>"$work/error" || return 1
	! kvmsnap restore "$dir/snap" -- /nonexistent 2>"$work/error" || return 1
	grep -q '/nonexistent: No such file' "$work/error"
	! kvmsnap restore "$dir/snap" --instant -- qemu-system-x86_64 -netdev vhost-user,id=n,chardev=c 2>"$work/error" || return 1
	grep -q 'vhost-user device' "$work/error"
}

# What --print prints is a command that does it.
printed() {
	make_file -m ${mem}M
	kvmsnap restore "$dir/snap" --print -- qemu-system-x86_64 -accel kvm -cpu host -display none -S -m ${mem}M \
		-qmp "unix:$work/p.qmp2,server=on,wait=off" -serial null -parallel none -nic none -kernel "$(guest_kernel)" \
		-append 'console=ttyS0 a' >"$work/command"
	cat "$work/command"
	grep -q "'console=ttyS0 a' " "$work/command"
	bash "$work/command" >"$work/p.log" 2>&1 &
	local pid=$!
	await 10 guest_is p paused || { cat "$work/p.log"; return 1; }
	# Not the shell alone.
	qmp p '{"execute":"quit"}' >/dev/null
	wait $pid
}

migrated() {	# NAME STATUS: a migration of it ends so
	await 30 migration_is "$1" 'completed|failed|cancelled'
	migration_is "$1" "$2"
}

receive_uri="exec:PATH=$PATH kvmsnap receive --report $dir/snap 2>$work/received"
migrate() {
	qmp a "{\"execute\":\"migrate-set-parameters\",\"arguments\":{\"max-bandwidth\":${1:-1000000000},\"downtime-limit\":300}}" \
		"{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"$receive_uri\"}}" >/dev/null
}

wait_received() {
	await 10 no_process kvmsnap
	cat "$work/received"
}

# received live|stopped ARG...
received() {
	local how=$1 flavour
	shift
	begin "$@"
	if [ "$how" = stopped ]; then
		kvmsnap save --stay-stopped --qmp "$work/a.qmp" --output "$dir/snap.first" --quiet
		feign_end a "$dir/snap.first"
		rm "$dir/snap.first"
	fi
	migrate
	migrated a completed
	wait_received
	grep -q '^received .*: .* of pages in' "$work/received"
	# RAM was sent more than once, and has one place.
	[ "$how" = stopped ] || [ "$(qmp a '{"execute":"query-migrate"}' | jq 'select(.return.ram) | .return.ram["dirty-sync-count"]')" -gt 2 ]
	[ "$(stat -c %s "$dir/snap")" -lt $(((mem + 48) << 20)) ]
	same_ram a "$dir/snap"
	kvmsnap verify "$dir/snap"
	for flavour in plain multifd; do
		restored_goes_on "$dir/snap" $flavour "$@"
	done
	restore b "$dir/snap" --instant -- "$@"
	same b "$dir/snap"
	goes_on b
	ends b
}

# The file is there, and the stream takes 20 s and more.
receiving() {
	await 10 [ -e "$dir/snap.partial" ]
	sleep 0.5
	[ -e "$dir/snap.partial" ]
}

receive_fails() {
	local signal
	begin -m ${mem}M
	# Cancelled.
	migrate 4000000
	receiving
	qmp a '{"execute":"migrate_cancel"}' >/dev/null
	migrated a cancelled
	wait_received
	grep -q 'ends too early' "$work/received"
	[ ! -e "$dir/snap" ]
	[ ! -e "$dir/snap.partial" ]
	guest_goes_on a
	# No room.
	leave_free "$dir" $((20 << 20))
	migrate
	migrated a failed || status=1
	rm -f "$dir/filler"
	wait_received
	grep -q 'No space left' "$work/received"
	[ ! -e "$dir/snap" ]
	[ ! -e "$dir/snap.partial" ]
	[ "${status:-0}" = 0 ]
	[ "$(guest_status a)" = running ]
	guest_goes_on a
	# Told to end, and killed, which leaves a file for the next to remove.
	for signal in TERM KILL; do
		migrate 4000000
		receiving
		pkill -$signal -x kvmsnap
		migrated a failed
		wait_received
		[ $signal = KILL ] || [ ! -e "$dir/snap.partial" ]
		[ "$(guest_status a)" = running ]
		guest_goes_on a
	done
	# And then it works.
	migrate
	migrated a completed
	wait_received
	same_ram a "$dir/snap"
}

# A stream that ends anywhere is none.
cut_streams() {
	local size i at
	begin -m ${mem}M
	qmp a '{"execute":"stop"}' "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"exec:cat >$dir/stream\"}}" >/dev/null
	migrated a completed
	size=$(stat -c %s "$dir/stream")
	for at in 0 1 4 8 9 20 40 100 $((size / 3)) $((size / 2)) $((size - 60000)) $((size - 3000)) $((size - 6)) $((size - 1)); do
		! head -c "$at" "$dir/stream" | kvmsnap receive "$dir/snap" 2>"$work/error" || return 1
		[ ! -e "$dir/snap" ]
		[ ! -e "$dir/snap.partial" ]
	done
	! kvmsnap receive "$dir/snap" </dev/urandom 2>"$work/error" || return 1
	! { cat "$dir/stream"; echo more; } | kvmsnap receive "$dir/snap" 2>"$work/error" || return 1
	kvmsnap receive "$dir/snap" <"$dir/stream"
	kvmsnap verify "$dir/snap"
	rm -f "$dir/stream"
}

usage_errors() {
	local c
	for c in "restore" "restore x" "restore x y -- q" "restore x --" "restore --warm x -- q" "restore --channels y x -- q" \
		"restore --generation 0 x -- q" "restore --print --instant x -- q" "receive" "receive --sync y x"; do
		# shellcheck disable=SC2086
		kvmsnap $c </dev/null 2>"$work/error" && return 1
		grep -q '^usage: kvmsnap' "$work/error"
	done
}

# pmem NAME FILE ADDRESS SIZE: guest-physical memory, by QEMU.
pmem() {
	qmp "$1" "{\"execute\":\"pmemsave\",\"arguments\":{\"val\":$(($3)),\"size\":$(($4)),\"filename\":\"$2\"}}" | grep -q '"return"'
}

# A core's bytes and registers are QEMU's, and gdb finds the kernel's own words where the kernel says.
exported() {
	local GUEST_PACKED=1 mib=$((1 << 20)) args=(-machine "pc,max-ram-below-4g=128M" -smp 2 -m 192M) banner n
	# 7.3 takes more for itself.
	work_args="${work_args/fill=24/fill=16} symbol=linux_banner" begin "${args[@]}"
	# Twice: pages of the second are in two images.
	kvmsnap save --incremental --qmp "$work/a.qmp" --output "$dir/snap" --quiet
	guest_goes_on a
	kvmsnap save --last --qmp "$work/a.qmp" --output "$dir/snap" --stay-stopped
	pmem a "$dir/pmem.low" $mib 127*mib
	pmem a "$dir/pmem.high" 4096*mib 64*mib

	kvmsnap export --format raw "$dir/snap" "$dir/raw"
	[ "$(stat -c %s "$dir/raw")" = $(((4096 + 64) * mib)) ]
	cmp -i $mib:0 -n $((127 * mib)) "$dir/raw" "$dir/pmem.low"
	cmp -i $((4096 * mib)):0 -n $((64 * mib)) "$dir/raw" "$dir/pmem.high"
	kvmsnap export --format raw --block pc.ram "$dir/snap" "$dir/raw.block"
	cmp -i $((128 * mib)):0 -n $((64 * mib)) "$dir/raw.block" "$dir/pmem.high"
	rm "$dir"/raw*

	kvmsnap export --format elf "$dir/snap" "$dir/core"
	banner=$(sed -n 's/^guest: symbol \([0-9a-f]*\) linux_banner.*/\1/p' "$work/a.console")
	gdb -batch -ex "core $dir/core" -ex "dump binary memory $dir/gdb.low $mib 128*$mib" \
		-ex "dump binary memory $dir/gdb.high 4096L*$mib (4096L+64)*$mib" \
		-ex "printf \"banner: %s\n\", (char *)0x$banner" \
		-ex 'thread apply all -ascending printf "rip %lx rsp %lx cs %x\n", $rip, $rsp, $cs' >"$work/gdb" 2>&1
	cat "$work/gdb"
	cmp "$dir/gdb.low" "$dir/pmem.low"
	cmp "$dir/gdb.high" "$dir/pmem.high"
	grep -qF "banner: Linux version $(guest_release) " "$work/gdb"
	hmp a "info registers -a" | tr -d '\r' >"$work/registers"
	for n in $(grep -oE '^rip [0-9a-f]+' "$work/gdb" | cut -d' ' -f2); do
		grep -qi "RIP=0*$n " "$work/registers"
	done
	[ "$(grep -c '^rip' "$work/gdb")" = 2 ]
	rm -f "$dir"/gdb* "$dir"/pmem* "$dir/core"
}

# Main memory in two blocks, whose order the file does not tell.
exported_nodes() {
	local args=(-machine q35 -m ${mem}M -object memory-backend-ram,id=m0,size=$((mem / 2))M
		-object memory-backend-ram,id=m1,size=$((mem / 2))M -numa node,memdev=m0 -numa node,memdev=m1)
	make_file "${args[@]}"
	! kvmsnap export --format elf "$dir/snap" "$dir/core" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'name them in their order, as in --ram m0,m1' "$work/error"
	[ ! -e "$dir/core" ]
	! kvmsnap export --format raw --ram m0 "$dir/snap" "$dir/raw" || return 1
	! kvmsnap export --format raw --ram m0,m2 "$dir/snap" "$dir/raw" || return 1
	kvmsnap export --format elf --ram m0,m1 "$dir/snap" "$dir/core"
	! kvmsnap export --format elf --ram m0,m1 "$dir/snap" "$dir/core" || return 1
	kvmsnap export --format raw --ram m0,m1 --force "$dir/snap" "$dir/core"
	[ "$(stat -c %s "$dir/core")" = $((mem << 20)) ]
	rm "$dir/core"
}

# Those that can share a guest come one after the other.
tap_case "usage errors" usage_errors
tap_case "loaded, pc" loaded -m ${mem}M
tap_case "instant, from a block device" instant_from_device
tap_case "loaded from a slow disk" loaded_slowly
tap_case "printed" printed
tap_case "streams that are cut off" cut_streams
tap_case "receive fails: the guest runs on" receive_fails
tap_case "received, live" received live -m ${mem}M
tap_case "instant, of appended and of QEMU's files" instant_of_others
tap_case "loaded, q35, 2 vCPUs" loaded -machine q35 -smp 2 -m ${mem}M
tap_case "received, stopped, q35" received stopped -machine q35 -smp 2 -m ${mem}M
tap_case "not like the one that was saved" mismatches
tap_case "exported to gdb" exported
tap_case "exported, NUMA nodes" exported_nodes
# More than what these guests keep and QEMU's own together: warmed().
mem=192
GUEST_DEFAULTS='' tap_case "instant, pc, and reset" instant --reset -m ${mem}M
tap_case "instant, q35, NUMA nodes" instant -machine q35 -smp 2 -m ${mem}M \
	-object memory-backend-ram,id=n0,size=$((mem / 2))M -object memory-backend-memfd,id=n1,size=$((mem / 2))M \
	-numa node,memdev=n0,cpus=0 -numa node,memdev=n1,cpus=1
tap_end
