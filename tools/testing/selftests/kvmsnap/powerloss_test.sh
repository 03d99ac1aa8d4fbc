#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Power is lost at every flush of a full save, of generations, of a compaction and of a file that
# is replaced: dm-log-writes records what the disk is told, and each state in which it was flushed is
# mounted again.  Whatever was committed by then is there, and every file under its final name is
# whole; each generation equals what it was, byte for byte.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
fs=$(stat -f -c %T "$dir")
[ "$fs" != ext2/ext3 ] || fs=ext4
snaps=$work/logged check=$work/replayed
mem=128
GUEST_RING=1024

let_go() {
	local name
	guest_kill a
	keepers_end
	for name in "$check" "$snaps"; do mountpoint -q "$name" && umount "$name"; done
	for name in kvmsnap-check kvmsnap-log; do dmsetup info $name >/dev/null 2>&1 && dmsetup remove --retry $name; done
	for name in data log replay cow; do
		losetup -j "$dir/pl.$name" | cut -d: -f1 | xargs -rn1 losetup -d
		rm -f "$dir/pl.$name"
	done
	rm -rf "$dir/pl.ref"
}
trap let_go EXIT

loop() {	# NAME SIZE
	truncate -s "$2" "$dir/pl.$1"
	losetup --find --show "$dir/pl.$1"
}

# committed FILE...: from here on a power loss leaves each of them, named without its folder, with as
# many generations as it is named times.  A mark is one word.
committed() {
	local IFS=,
	dmsetup message kvmsnap-log 0 mark ",$*"
}

# Generation by generation of a file, as "KEY FILE" of what it holds; KEY tells one from all others.
generations() {
	local file n time
	for file in "$1"/*.snap; do
		[ -e "$file" ] || continue
		kvmsnap list --json "$file" | jq -r '.[] | "\(.generation) \(.time)"' | while read -r n time; do
			echo "$n-$time $n $file"
		done
	done
}

# Keep what each new generation is.
keep() {
	local key n file
	generations "$snaps" >"$work/generations"
	while read -r key n file; do
		[ -e "$dir/pl.ref/$key" ] ||
			kvmsnap export --format raw --block pc.ram --generation "$n" "$file" "$dir/pl.ref/$key"
	done <"$work/generations"
}

save() {	# OPTION...
	kvmsnap save --qmp "$work/a.qmp" --stay-stopped --checksum --quiet "$@"
	qmp a '{"execute":"cont"}' >/dev/null
	guest_goes_on a
	# No two of a number in the same second.
	sleep 1
	keep
}

# The disk's whole life goes into the log.
record() {
	local data log
	data=$(loop data 640M) log=$(loop log 3G)
	modprobe dm-log-writes
	dmsetup create kvmsnap-log --table "0 $(blockdev --getsz "$data") log-writes $data $log"
	mkfs_mount "$fs" /dev/mapper/kvmsnap-log "$snaps"
	mkdir -p "$dir/pl.ref"
	guest_start a "fill=8 zero=2 tick=100 writers=1 write=2" -m ${mem}M
	guest_goes_on a
	committed
	save --output "$snaps/one.snap"
	committed one
	save --incremental --output "$snaps/two.snap"
	committed one two
	save --incremental --output "$snaps/three.snap"
	# Where blocks can't be shared it is a full one, to append to.
	committed one two three
	save --incremental --output "$snaps/three.snap"
	save --last --output "$snaps/three.snap"
	committed one two three three three
	committed one two three three
	kvmsnap compact --keep 2 "$snaps/three.snap"
	keep
	save --output "$snaps/one.snap" --force
	committed one two three three
	guest_kill a
	keepers_end
	sync -f "$snaps"
	umount "$snaps"
	dmsetup remove --retry kvmsnap-log
}

# What the disk holds now, by a mount that leaves it as it is; "$@": what must be there.
holds() {
	local key n file name
	dmsetup create kvmsnap-check --table "0 $(blockdev --getsz "$replay") snapshot $replay $cow N 8"
	mount -t "$fs" /dev/mapper/kvmsnap-check "$check"
	generations "$check" >"$work/generations"
	while read -r key n file; do
		kvmsnap export --format raw --block pc.ram --generation "$n" --force "$file" "$dir/pl.ref/now" >/dev/null
		cmp "$dir/pl.ref/$key" "$dir/pl.ref/now"
		looked=$((looked + 1))
	done <"$work/generations"
	for name; do
		[ "$(grep -c "/$name.snap" "$work/generations")" -ge "$(printf '%s\n' "$@" | grep -cx "$name")" ]
	done
	umount "$check"
	dmsetup remove --retry kvmsnap-check
	dd if=/dev/zero of="$cow" bs=4k count=1 status=none
}

replay() {
	local replay cow at=0 must=() points=0 looked=0 line begun=false status
	replay=$(loop replay 640M) cow=$(loop cow 64M)
	modprobe dm-snapshot
	mkdir -p "$check"
	while "$libexec/logreplay" "$dir/pl.log" "$replay" $at >"$work/entries" || { status=$?; false; }; do
		while read -r line; do
			case $line in
			mark*) begun=true; IFS=, read -ra must <<<"${line#mark ,}" ;;
			at*) at=${line#at } ;;
			esac
		done <"$work/entries"
		# Before the first mark there may be no file system yet.
		$begun || continue
		points=$((points + 1))
		echo "flush $points, before byte $at; must hold: ${must[*]:-nothing}"
		holds "${must[@]}"
		[ $((points % 10)) != 0 ] || echo "# $points flushes, $looked generations, $SECONDS s" >&3
	done
	echo "# $points flushes, $looked generations compared" >&3
	# The end of the log, and no error.
	[ $status = 3 ]
	[ "${#must[@]}" = 4 ]
	[ $points -gt 10 ]
}

tap_case "recorded" record
tap_case "every flush, on $fs" replay
tap_end
