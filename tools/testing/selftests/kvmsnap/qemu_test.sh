#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Stock QEMU end to end: a guest on each kind of RAM is saved; the file equals its RAM byte
# for byte, read by ramcmp; stock QEMU restores it, plain or with multifd and direct I/O (the
# first both ways), the restored RAM equals the file too, and the guest goes on with its
# memory intact.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
trap 'guest_kill a; guest_kill b' EXIT

fill="fill=48 zero=8 tick=100"
mem=192

# round_trip ARG...: the guest's QEMU arguments but -kernel.
round_trip() {
	local flavour flavours
	flavours=$(flavour_in_turn)
	[ "$tap_count" != 1 ] || flavours="plain multifd"
	guest_kill a
	rm -f "$dir/snap" "$dir/ram."*
	guest_start a "$fill" "$@"
	guest_goes_on a
	kvmsnap save --qmp "$work/a.qmp" --output "$dir/snap" --stay-stopped
	[ "$(guest_status a)" = paused ]
	same_ram a "$dir/snap"
	kvmsnap verify "$dir/snap"
	local at
	at=$(last_tick a)
	# The source's shared memory files are the source's: the restored guests get copies.
	guest_kill a
	for flavour in $flavours; do
		rm -f "$dir/ram."*
		restored_goes_on "$dir/snap" "$flavour" "$@"
		[ "$(sed -n 's/^guest: tick \([0-9]*\).*/\1/p' "$work/b.console" | head -1)" -le $((at + 2)) ]
	done
}

with_hugetlb() {
	trap 'guest_kill a; guest_kill b; umount /dev/hugepages; echo 0 >/proc/sys/vm/nr_hugepages' EXIT
	echo $((mem / 2 + 8)) >/proc/sys/vm/nr_hugepages
	mkdir -p /dev/hugepages
	mount -t hugetlbfs hugetlbfs /dev/hugepages
	round_trip "$@"
}

backend() {	# backend KIND,OPTIONS...: as the machine's RAM
	echo "-machine pc,memory-backend=m0 -object memory-backend-$1,id=m0,size=${mem}M -m ${mem}M"
}

# With the devices that a guest has when nothing is said.
GUEST_DEFAULTS='' tap_case "anonymous memory, pc, huge pages" round_trip -m ${mem}M
tap_case "anonymous memory, q35, 2 vCPUs" round_trip -machine q35 -smp 2 -m ${mem}M
tap_case "anonymous memory in 4 KiB pages" without_thp round_trip -m ${mem}M
# shellcheck disable=SC2046
{
tap_case "memfd, shared" round_trip $(backend memfd,share=on)
tap_case "memfd, private" round_trip $(backend memfd,share=off)
tap_case "file on a disk, shared" round_trip $(backend "file,mem-path=$dir/ram.0,share=on")
tap_case "file on a disk, private" round_trip $(backend "file,mem-path=$dir/ram.0,share=off")
tap_case "hugetlbfs, 2 MiB" with_hugetlb $(backend file,mem-path=/dev/hugepages,share=on)
}
tap_case "two NUMA nodes of different kinds" round_trip -smp 2 -m ${mem}M \
	-object memory-backend-ram,id=n0,size=$((mem / 2))M \
	-object memory-backend-memfd,id=n1,size=$((mem / 2))M \
	-numa node,memdev=n0,cpus=0 -numa node,memdev=n1,cpus=1
tap_end
