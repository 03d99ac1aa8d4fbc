#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Generations of a guest that goes on working: each equals the RAM of the stopped guest byte for
# byte, and stays so; stock QEMU restores any; it costs what has changed; and whatever fails, the
# next one is whole.  Where the file system shares blocks a generation is a file, elsewhere one
# is appended to the last one's.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
trap 'guest_kill a; guest_kill b; keepers_end' EXIT

mem=160
work_args="fill=24 zero=4 tick=100 writers=2 write=3 rest=20"
GUEST_RING=1024
case $(stat -f -c %T "$dir") in
xfs | btrfs) content=clone ;;
*) content=appended ;;
esac

# where N: the file of generation N.
where() {
	[ $content = clone ] && echo "$dir/vm-$1.snap" || echo "$dir/vm.snap"
}

# incremental N OPTION...: generation N of guest a, which stays stopped, and is then compared; what
# QEMU is to load goes to $dir/at.N.
incremental() {
	local n=$1 stream
	shift
	kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where "$n")" --stay-stopped --json "$@" \
		>"$work/report.$n"
	[ "$(guest_status a)" = paused ]
	stream=$(jq -e .stream "$work/report.$n")
	[ "$stream" = 0 ] && stream='' || stream=",offset=$stream"
	echo "$(where "$n")$stream" >"$work/at.$n"
	same_ram a "$(cat "$work/at.$n")"
}

go_on() {
	qmp a '{"execute":"cont"}' >/dev/null
	guest_goes_on a
}

# start ARG...: guest a, which nothing follows.
start() {
	keepers_end
	rm -f "$dir"/*.snap* "$work"/report.* "$work"/at.*
	guest_again a "$work_args" "$@"
	guest_goes_on a
}

# It does not work while others do.
rest() {
	qmp a '{"execute":"stop"}' >/dev/null
}

# Nothing follows the guest any more: no keeper, no session, and QEMU logs nothing.
let_go() {
	await 10 no_process 'kvmsnap-keep|kvmsnap-guard'
	await 10 module_unused
	await 3 not_logging a
}

how=("" "--live --max-downtime 1us --allow-downtime 60s" "--stage 32M" "--live --max-downtime 1us --allow-downtime 60s --stage 16M")

# exact_each_time COUNT ARG...
exact_each_time() {
	local n count=$1 flavour last=''
	shift
	# shellcheck disable=SC2046
	start "$@" $(drive work)
	for n in $(seq "$count"); do
		[ "$n" != "$count" ] || last=--last
		# shellcheck disable=SC2086
		incremental "$n" ${how[$((n % 4))]} --checksum $last
		[ "$(jq .generation "$work/report.$n")" = "$n" ]
		[ "$(jq .passes_again "$work/report.$n")" = 0 ]
		if [ "$n" = 1 ]; then
			[ "$(jq -r .content "$work/report.1")" = full ]
		else
			[ "$(jq -r .content "$work/report.$n")" = $content ]
			# The guest rewrites 6 of the 100 MiB and more that the first one wrote.
			jq -e --slurpfile first "$work/report.1" \
				'.written_bytes > 100000 and .written_bytes < $first[0].written_bytes / 3' "$work/report.$n"
		fi
		case $n in 1 | $((count / 2)) | "$count") [ -z "${disk:-}" ] || cp --sparse=always "$dir/disk.work" "$dir/disk.$n" ;; esac
		go_on
		[ -z "${disk:-}" ] || more_files a
		sleep "${KVMSNAP_EVERY:-0}"
	done
	let_go
	rest
	# Those before are what they were.
	for n in $(seq $([ $content = clone ] && echo 1 || echo "$count") "$count"); do
		kvmsnap verify "$(where "$n")" | tee "$work/verified"
		grep -q 'all as their checksums say' "$work/verified"
	done
	flavour=plain
	for n in 1 $((count / 2)) "$count"; do
		# shellcheck disable=SC2046
		restored "$(cat "$work/at.$n")" $flavour "$@" $(drive "$n")
		[ -z "${disk:-}" ] || works_on "$n"
		guest_kill b
		[ $flavour = plain ] && flavour=multifd || flavour=plain
	done
	[ "$(kvmsnap list --json "$dir" | jq length)" = "$count" ]
	[ "$(kvmsnap list --json "$dir" | jq -r ".[$((count - 1))].incoming")" = "file:$(cat "$work/at.$count")" ]
}

# drive NAME: where there is a disk, QEMU's option for it as it was then.
drive() {
	[ -z "${disk:-}" ] || echo "-drive file=$dir/disk.$1,format=raw,if=virtio,cache=none"
}

has_files() { [ "$(guest_count "$1" files)" -ge "$2" ]; }

# more_files NAME: the guest replaces some on its disk, and finds what it expects.
more_files() {
	await 60 has_files "$1" $(($(guest_count "$1" files) + 5))
	guest_goes_on "$1"
}

# works_on N: the restored guest finds its files on the disk as that was then, and goes on with them.
works_on() {
	more_files b
	guest_kill b
	# Its journal is replayed, and nothing else is amiss.
	e2fsck -fp "$dir/disk.$1" || [ $? = 1 ]
	rm "$dir/disk.$1"
}

files_too() {
	local disk=1 work_args="$work_args files=1" GUEST_MODULES="virtio_pci virtio_blk ext4"
	truncate -s 32M "$dir/disk.work"
	mkfs.ext4 -qF "$dir/disk.work"
	exact_each_time "$@"
	guest_kill a
	rm "$dir/disk.work"
}

# QEMU slows the guest down for as long as a generation takes, and no longer.
throttled_once() {
	start -m ${mem}M
	incremental 1 --live --max-downtime 1us --allow-downtime 60s --throttle 1M
	[ "$(jq .throttled "$work/report.1")" = true ]
	[ "$(qmp a '{"execute":"query-vcpu-dirty-limit"}' | jq -c 'select(.return) | [.return[]["limit-rate"]]')" = '[1000000]' ]
}

# Without a dirty ring all is compared, and what has changed is written.
without_ring() {
	local GUEST_RING="" n
	start -m ${mem}M
	for n in 1 2 3; do
		incremental "$n"
		[ "$(jq -r .tracking "$work/report.$n")" = compare ]
		go_on
	done
	jq -e --slurpfile first "$work/report.1" '.written_bytes < $first[0].written_bytes / 3' "$work/report.3"
}

plugged_between() {
	start -m 208M,slots=2,maxmem=512M
	incremental 1
	go_on
	qmp a '{"execute":"object-add","arguments":{"qom-type":"memory-backend-ram","id":"more","size":33554432}}' \
		'{"execute":"device_add","arguments":{"driver":"pc-dimm","id":"dimm","memdev":"more"}}' | grep -c '"return"' |
		grep -qx 2
	sleep 1
	incremental 2
	go_on
	incremental 3
	guest_kill a
	restored_goes_on "$(cat "$work/at.3")" plain -m 208M,slots=2,maxmem=512M \
		-object memory-backend-ram,id=more,size=32M -device pc-dimm,id=dimm,memdev=more
}

# failing_between COMMAND...: the second generation fails by it.  The third is whole, and costs no
# more than what has changed.
failing_between() {
	start -m ${mem}M
	incremental 1
	go_on
	"$@"
	[ "$(guest_status a)" = running ]
	guest_goes_on a
	kvmsnap verify "$(where 1)"
	[ ! -e "$dir/vm-2.snap.partial" ]
	[ $content = appended ] || [ ! -e "$(where 2)" ]
	incremental 3
	[ "$(jq -r .content "$work/report.3")" = $content ]
	jq -e --slurpfile first "$work/report.1" '.written_bytes < $first[0].written_bytes / 3' "$work/report.3"
	# Nor does it keep to the bandwidth of the one that was interrupted.  First it compares, which a debug kernel is slow at.
	jq -e '.bytes_per_second > 30000' "$work/report.3"
	go_on
	kvmsnap verify "$(where 3)"
	rest
	restored_goes_on "$(cat "$work/at.1")" plain -m ${mem}M
	restored_goes_on "$(cat "$work/at.3")" multifd -m ${mem}M
}

interrupted() {
	kvmsnap save --incremental --live --bandwidth 10K --qmp "$work/a.qmp" --output "$(where 2)" 2>"$work/error" &
	sleep "${KVMSNAP_SLOW:-1}"
	kill -INT $!
	! wait $! || return 1
	cat "$work/error"
	grep -q interrupted "$work/error"
}

# All of the disk, in pieces: what btrfs says is free is not to be had in one.
fill_disk() {
	local size n=0
	for ((size = 1 << 30; size >= 1 << 20; size /= 2)); do
		while fallocate -l $size "$dir/filler.$n" 2>/dev/null; do n=$((n + 1)); done
		rm -f "$dir/filler.$n"
	done
	dd if=/dev/zero of="$dir/filler.$n" bs=64k status=none || true
}

# Whether it can be written to is found out when the module is told of it.
no_disk() {
	! kvmsnap save --incremental --qmp "$work/a.qmp" --output "$work/there.snap" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'no direct I/O' "$work/error"
}

has_free() { sync -f "$dir" && [ "$(stat -f -c %f "$dir")" -ge "$1" ]; }

# The second one does not fit, and gives back what it has taken.
no_room() {
	local free status=0
	free=$(stat -f -c %f "$dir")
	! kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where 2)" 2>"$work/error" || status=1
	await 10 has_free $((free / 2)) || status=1
	rm -f "$dir"/filler.*
	sync -f "$dir"
	cat "$work/error"
	grep -q 'No space left' "$work/error"
	return $status
}

disk_full() {
	fill_disk
	no_room
}

has_read() { [ "$(guest_count a reads)" -ge "$1" ]; }

# The second fails in the pause, and bits are not to be trusted then.  They are cleared for the third, which is
# interrupted before all is compared: what QEMU has read from the disk meanwhile is for the fourth to find.
failing_twice() {
	local saver work_args="$work_args disk=1" GUEST_MODULES="virtio_pci virtio_blk"
	head -c 24M /dev/urandom >"$dir/disk.img"
	start -m ${mem}M -drive "file=$dir/disk.img,format=raw,if=virtio,read-only=on,cache=none"
	# Into memory that the guest has never touched its kernel writes zeros first.
	await 60 has_read 100
	incremental 1
	qmp a '{"execute":"block_set_io_throttle","arguments":{"device":"virtio0","bps":0,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":4,"iops_wr":0}}' |
		grep -q '"return"'
	go_on
	fallocate -l 2M "$dir/room"
	fill_disk
	rm "$dir/room"
	no_room
	grep -q 'writing RAM' "$work/error"
	guest_goes_on a
	kvmsnap save --incremental --live --bandwidth 100K --qmp "$work/a.qmp" --output "$(where 2)" 2>"$work/error" &
	saver=$!
	await 30 session_is "running 3"
	kill -INT $saver
	! wait $saver || return 1
	grep -q interrupted "$work/error"
	incremental 4
	guest_kill a
	rm "$dir/disk.img"
}

keeper_killed() {
	start -m ${mem}M
	incremental 1
	go_on
	pkill -9 -x kvmsnap-keep
	let_go
	guest_goes_on a
	# Not by dropping what is there.
	! kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where 1)" 2>"$work/error" || return 1
	grep -q 'exists, and nothing follows it' "$work/error"
	rm -f "$(where 2)"
	incremental 2
	[ "$(jq -r .content "$work/report.2")" = full ]
	go_on
	incremental 3
	[ "$(jq -r .content "$work/report.3")" = $content ]
	# QEMU goes, and so does the keeper.
	guest_kill a
	await 5 no_process kvmsnap-keep
}

# The caller has no inputs and outputs: the keeper doesn't take its own descriptors for them.
closed_outputs() {
	start -m ${mem}M
	kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where 1)" <&- >&- 2>&-
	kvmsnap verify "$(where 1)"
	local ticks
	ticks=$(cut -d' ' -f14 "/proc/$(pgrep -x kvmsnap-keep)/stat")
	sleep 2
	# It waits, and does not turn in circles.
	[ "$(cut -d' ' -f14 "/proc/$(pgrep -x kvmsnap-keep)/stat")" -lt $((ticks + 100)) ]
	kvmsnap save --incremental --last --qmp "$work/a.qmp" --output "$(where 2)" <&- >&- 2>&-
	kvmsnap verify "$(where 1)"
	let_go
}

# leave_room TENTHS: of what a save of guest a takes; $dir/filler takes the rest of the disk.
leave_room() {
	local bytes
	kvmsnap save --qmp "$work/a.qmp" --output "$dir/one" --quiet
	bytes=$(du -B1 "$dir/one" | cut -f1)
	rm "$dir/one"
	leave_free "$dir" $((bytes * $1 / 10))
}

# The first save of all fails on the way: the second has nothing to go by.
first_fails() {
	start -m ${mem}M
	leave_room 5
	! kvmsnap save --incremental --live --qmp "$work/a.qmp" --output "$(where 1)" 2>"$work/error" || status=1
	rm "$dir/filler"
	sync -f "$dir"
	cat "$work/error"
	grep -q 'No space left' "$work/error"
	incremental 1 --live --allow-downtime 60s
	[ "$(jq -r .content "$work/report.1")" = full ]
	go_on
	incremental 2 --live --allow-downtime 60s --last
	[ "$(jq -r .content "$work/report.2")" = $content ]
	go_on
	let_go
	return ${status:-0}
}

# save_read READER REPORT ARG...: a save in whose first pass the reader of a port that waits reads on.
save_read() {
	local saver follower events line='' reader=$1 report=$2
	shift 2
	await 30 [ -e "$work/waits" ]
	exec {events}< <(exec kvmsnap status --follow)
	follower=$!
	await 10 listens $follower
	kvmsnap save "$@" >"$report" &
	saver=$!
	while [[ $line != *"pass begins"* ]] && read -r -t $((60 * ${KVMSNAP_SLOW:-1})) -u "$events" line; do :; done
	kill -USR1 "$reader"
	wait $saver
	kill $follower
	exec {events}<&-
}

# A virtio-serial port whose reader has had it wait takes from the queue in guest memory when that reads on, also
# while the VM is stopped: behind the device state that was taken before.
queue_used() {
	local n reader port work_args="$work_args port=1000000000" GUEST_MODULES="virtio_pci virtio_console"
	port=(-m ${mem}M -device virtio-serial -chardev "socket,id=port,path=$work/port,server=on,wait=off" -device virtserialport,chardev=port)
	start "${port[@]}"
	read_port "$work/port" "$work/waits" &
	reader=$!
	for n in 0 1 2 3 4; do
		# shellcheck disable=SC2086
		save_read $reader "$work/report.$n" --incremental --qmp "$work/a.qmp" --output "$dir/vm-$n.snap" --checksum --json ${how[$((n % 4))]}
		jq -c '[.passes_again, .writer, .paused_seconds]' "$work/report.$n"
		guest_goes_on a
	done
	save_read $reader "$work/report" --qmp "$work/a.qmp2" --output "$dir/stopped.snap"
	cat "$work/report"
	kill $reader
	# Not by what it has read.
	wait $reader || [ $? = 143 ]
	guest_kill a
	for n in vm-0 vm-1 vm-2 vm-3 vm-4 stopped; do
		kvmsnap verify "$dir/$n.snap"
		restored_goes_on "$dir/$n.snap" plain "${port[@]}"
	done
	rm "$dir/stopped.snap"
	[ "$(jq .passes_again "$work/report.0")" -gt 0 ]
	grep -q 'gone over .*virtio-console wrote it' "$work/report"
}

# Another QEMU has taken the place of one that has died, socket and all: it is none of the guardian's
# business, who has something left to undo.
another_qemu() {
	local saver
	trap 'pkill -CONT -x kvmsnap-guard || true; guest_kill a' EXIT
	start -m ${mem}M
	kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where 1)"
	kvmsnap save --incremental --live --bandwidth 100K --qmp "$work/a.qmp" --output "$(where 2)" &
	saver=$!
	sleep "${KVMSNAP_SLOW:-1}"
	pkill -STOP -x kvmsnap-guard
	guest_kill a
	! wait $saver || return 1
	guest_start a "$work_args" -m ${mem}M
	qmp a '{"execute":"stop"}' '{"execute":"set-vcpu-dirty-limit","arguments":{"dirty-rate":5000}}' >/dev/null
	pkill -CONT -x kvmsnap-guard
	await 5 no_process kvmsnap-guard
	[ "$(guest_status a)" = paused ]
	qmp a '{"execute":"query-vcpu-dirty-limit"}' | grep -q '"limit-rate": 5000'
}

# checkpoint, under load, with old ones going.  KVMSNAP_CHECKPOINTS: how many (14), KVMSNAP_EVERY: how often (300ms).
checkpoints() {
	local count=${KVMSNAP_CHECKPOINTS:-14} keep=3 n nr
	start -m ${mem}M
	kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every "${KVMSNAP_EVERY:-300ms}" --keep $keep --count $count --sync data --checksum \
		--live --max-downtime 5ms --allow-downtime 60s --json >"$work/report"
	[ "$(jq -s length "$work/report")" = $count ]
	[ "$(jq -s '[.[] | select(.content != "full")] | length' "$work/report")" = $((count - 1)) ]
	let_go
	guest_goes_on a
	kvmsnap list "$dir"
	nr=$(kvmsnap list --json "$dir" | jq length)
	[ "$nr" -ge $keep ]
	[ "$nr" -lt $((2 * keep)) ]
	[ "$(kvmsnap list --json "$dir" | jq '.[-1].generation')" = $count ]
	[ $content = clone ] || [ "$(find "$dir" -name '*.snap' | wc -l)" = 1 ]
	# What an earlier run has left goes, once there are enough again.
	kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every 100ms --keep $keep --count $keep --sync data --checksum --quiet
	let_go
	count=$((count + keep)) nr=$(kvmsnap list --json "$dir" | jq length)
	[ "$nr" = $keep ]
	[ "$(kvmsnap list --json "$dir" | jq '.[-1].generation')" = $count ]
	[ $content = clone ] || [ "$(find "$dir" -name '*.snap' | wc -l)" = 1 ]
	rest
	for n in 0 $((nr - 1)); do
		restored_goes_on "$(kvmsnap list --json "$dir" | jq -r ".[$n].incoming" | sed 's/^file://')" plain -m ${mem}M
	done
	if [ $content = appended ]; then
		kvmsnap compact --keep 2 "$dir"/*.snap
		[ "$(kvmsnap list --json "$dir" | jq length)" = 2 ]
		kvmsnap verify "$dir"/*.snap | grep 'all as their checksums say'
		for n in 0 1; do
			restored_goes_on "$(kvmsnap list --json "$dir" | jq -r ".[$n].incoming" | sed 's/^file://')" multifd -m ${mem}M
		done
	fi
}

# flip FILE OFFSET: a bit.
flip() {
	perl -e 'open(F, "+<", $ARGV[0]); seek(F, $ARGV[1], 0); read(F, my $b, 1); seek(F, $ARGV[1], 0);
		print F chr(ord($b) ^ 4)' "$1" "$2"
}

# Of three appended generations the second's stream is not one any more: the others are there, and a
# fourth can follow.
one_damaged() {
	local stream
	cp --sparse=always "$(where 2)" "$dir/good"
	go_on
	incremental 3 --checksum
	stream=$(jq .stream "$work/report.2")
	printf 'XXXX' | dd of="$(where 2)" bs=1 seek="$stream" conv=notrunc status=none
	! kvmsnap verify "$(where 2)" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'generation 2: not a whole mapped-ram file' "$work/error"
	! grep -q 'generation [13]:' "$work/error" || return 1
	kvmsnap verify --generation 3 "$(where 2)" | grep 'all as their checksums say'
	! kvmsnap list --json "$(where 2)" >"$work/list" || return 1
	jq -e '[.[] | has("error")] == [false, true, false]' "$work/list"
	go_on
	incremental 4 --checksum
	kvmsnap verify --generation 4 "$(where 2)"
	rest
	restored_goes_on "$(cat "$work/at.4")" plain -m ${mem}M
	mv "$dir/good" "$(where 2)"
}

# A chain of two on a disk that can't read the second one's record: the first one is to be had nevertheless.  Nor does
# the second live on behind what is saved to that device next.
bad_sector() {
	local dev=/dev/mapper/${KVMSNAP_DM:?} disk end at sectors
	disk=$(disk 1)
	sectors=$(blockdev --getsz "$disk")
	start -m ${mem}M
	incremental 1
	go_on
	incremental 2
	end=$(kvmsnap info --json --generation 1 "$(where 1)" | jq .end)
	at=$((end / 512))
	dd if="$(where 2)" of="$dev" bs=1M conv=fsync status=none
	[ "$(kvmsnap list --json "$dev" | jq -c 'map(.generation)')" = "[1,2]" ]
	kvmsnap verify "$dev"
	dm_load "0 $at linear $disk 0
$at 8 error
$((at + 8)) $((sectors - at - 8)) linear $disk $((at + 8))"
	echo 1 >/proc/sys/vm/drop_caches
	! kvmsnap list --json "$dev" >"$work/list" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q "behind generation 1, at offset $end, lies what can't be read (Input/output error)" "$work/error"
	[ "$(jq -c 'map(.generation)' "$work/list")" = "[1]" ]
	kvmsnap verify --generation 1 "$dev"
	kvmsnap info "$dev" 2>"$work/error"
	grep -q 'the newest one before is taken' "$work/error"
	dm_load "0 $sectors linear $disk 0"
	keepers_end
	kvmsnap save --qmp "$work/a.qmp" --output "$dev" --stay-stopped
	[ "$(kvmsnap list --json "$dev" | jq length)" = 1 ]
}

# The record of one in the middle is not whole: those behind it are left alone, and none follows the one before.
record_lost() {
	local at n size
	start -m ${mem}M
	for n in 1 2; do
		incremental "$n"
		go_on
	done
	at=$(kvmsnap info --json --generation 1 "$(where 1)" | jq .end)
	flip "$(where 1)" $((at + 20))
	incremental 3
	go_on
	size=$(stat -c %s "$(where 1)")
	! kvmsnap save --incremental --qmp "$work/a.qmp" --output "$(where 1)" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q "the last one's file can't be read any more" "$work/error"
	[ "$(stat -c %s "$(where 1)")" = "$size" ]
	flip "$(where 1)" $((at + 20))
	[ "$(kvmsnap list --json "$(where 1)" | jq length)" = 3 ]
	kvmsnap verify "$(where 1)"
}

# Who writes past soft-dirty bits may come between two generations.  There is no vDPA device here, but QEMU
# tells of something that is called so.
hidden_writer_plugged() {
	local n
	start -m ${mem}M
	for n in 1 2; do
		incremental "$n"
		go_on
	done
	[ "$(jq .soft_dirty "$work/report.2")" = true ]
	jq -e '.paused_compared_bytes < 80 * 1048576' "$work/report.2"
	qmp a '{"execute":"netdev_add","arguments":{"type":"user","id":"vdpa0"}}' | grep '"return"'
	incremental 3
	[ "$(jq .soft_dirty "$work/report.3")" = false ]
	jq -e '.paused_compared_bytes > 160 * 1048576' "$work/report.3"
	guest_kill a
}

# What the next generation shares its blocks with is not to be written over.
base_is_kept() {
	start -m ${mem}M
	incremental 1
	go_on
	! kvmsnap save --qmp "$work/a.qmp2" --fd 9 --force 9<>"$(where 1)" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'in use by another save' "$work/error"
	incremental 2
	rest
	restored_goes_on "$(cat "$work/at.1")" plain -m ${mem}M
}

# A name may be any bytes.
odd_names() {
	local n name
	name=$dir/$(printf 'odd\377\033')
	start -m ${mem}M
	for n in 1 2; do
		kvmsnap save --incremental --qmp "$work/a.qmp" --output "$name-$n.snap" --checksum --json >"$work/report"
		[ "$(jq .generation "$work/report")" = $n ]
		kvmsnap verify "$name-$n.snap" | grep 'all as their checksums say'
		kvmsnap verify --json "$name-$n.snap" | jq -e .whole
		kvmsnap list --json "$name-$n.snap" | jq -e '.[0].file | endswith("odd\\xff\u001b-'$n'.snap")'
	done
}

# The file that others are appended to may not get longer than for four generations and a bit.
file_limit() {
	local bytes
	start -m ${mem}M
	kvmsnap save --qmp "$work/a.qmp" --output "$dir/one" --quiet
	bytes=$(stat -c %s "$dir/one")
	rm "$dir/one"
	(
		ulimit -f $((bytes * 9 / 2 / 1024))
		exec kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every 100ms --keep 3 --count 7 --json
	) >"$work/report"
	[ "$(jq -s '[.[].content]' -c "$work/report")" = '["full","appended","appended","appended","appended","appended","appended"]' ]
	[ "$(find "$dir" -name '*.snap' | wc -l)" = 1 ]
	[ "$(kvmsnap list --json "$dir" | jq -c '[.[].generation]')" = '[4,5,6,7]' ]
	kvmsnap verify "$dir"/*.snap
	let_go
	# With none to drop, it begins another file.
	rm "$dir"/*.snap
	(
		ulimit -f $((bytes * 5 / 2 / 1024))
		exec kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every 100ms --keep 5 --count 4 --json
	) >"$work/report"
	[ "$(jq -s '[.[].content]' -c "$work/report")" = '["full","appended","full","appended"]' ]
	[ "$(kvmsnap list --json "$dir" | jq -c '[.[].generation]')" = '[1,2,3,4]' ]
	kvmsnap verify "$dir/vm-000001.snap"
	kvmsnap verify "$dir/vm-000003.snap"
	let_go
}

# There is no room to compact the file, which grows instead, until there is.
no_room_to_compact() {
	start -m ${mem}M
	leave_room 16
	kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every 100ms --keep 2 --count 5 --json >"$work/report" 2>"$work/error" || status=1
	cat "$work/error"
	[ "$(grep -c 'No space left' "$work/error")" = 1 ]
	[ "$(jq -s '[.[].content]' -c "$work/report")" = '["full","appended","appended","appended","appended"]' ]
	[ "$(kvmsnap list --json "$dir" | jq -c '[.[].generation]')" = '[1,2,3,4,5]' ]
	kvmsnap verify "$dir"/*.snap
	let_go
	rm "$dir/filler"
	kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir" --every 100ms --keep 2 --count 4 --quiet
	[ "$(kvmsnap list --json "$dir" | jq -c '[.[].generation]')" = '[8,9]' ]
	let_go
	return ${status:-0}
}

# Several that are the first: one process follows the VM, and all are saved.  It keeps nothing of theirs.
first_at_once() {
	local n pids=() held
	start -m ${mem}M
	exec {held}>"$work/held"
	flock $held
	for n in 1 2 3; do
		kvmsnap save --incremental --qmp "$work/a.qmp" --output "$dir/first-$n.snap" --quiet &
		pids+=($!)
	done
	wait "${pids[0]}"
	wait "${pids[1]}"
	wait "${pids[2]}"
	exec {held}>&-
	flock -n "$work/held" true
	[ "$(pgrep -xc kvmsnap-keep)" = 1 ]
	kvmsnap list "$dir"
	[ "$(kvmsnap list --json "$dir" | jq length)" = 3 ]
	keepers_end
	let_go
}

# A bit that has flipped is found, and named; a torn tail is no generation, and goes.
damaged() {
	local page at
	start -m ${mem}M
	incremental 1 --checksum
	go_on
	incremental 2 --checksum
	page=$(kvmsnap info --json --generation 2 "$(where 2)" | jq '.blocks[] | select(.name == "pc.ram") | .pages_offset')
	# The first page that the generation has written itself.
	at=$(perl -e 'open(F, "<", $ARGV[0]); seek(F, $ARGV[1], 0); my $o = $ARGV[1];
		while (read(F, my $p, 4096)) { last if $p =~ /[^\0]/; $o += 4096 } print $o' "$(where 2)" "$page")
	flip "$(where 2)" $((at + 77))
	! kvmsnap verify "$(where 2)" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q "page $(((at - page) / 4096)) of RAM block pc.ram, at offset $at, is not what was written" "$work/error"
	grep -q 'generation 2:' "$work/error"
	flip "$(where 2)" $((at + 77))
	if [ $content = appended ]; then
		at=$(kvmsnap info --json --generation 1 "$(where 2)" | jq .end)
		flip "$(where 2)" $((at + 20))
		! kvmsnap verify "$(where 2)" 2>"$work/error" || return 1
		grep -q "behind generation 1, at offset $at, lies a record that is not whole" "$work/error"
		# The file itself is the keeper's.
		cp --sparse=always "$(where 2)" "$dir/copy.snap"
		flip "$(where 2)" $((at + 20))
		! kvmsnap compact --keep 1 "$dir/copy.snap" 2>"$work/error" || return 1
		cat "$work/error"
		grep -q 'not whole' "$work/error"
		rm "$dir/copy.snap"
		one_damaged
		# Without the first one's record there is no telling what follows, and nothing is dropped.
		at=$(kvmsnap info --json --generation 1 "$(where 2)" | jq '.bytes / 4096 | ceil * 4096')
		cp --sparse=always "$(where 2)" "$dir/copy.snap"
		flip "$dir/copy.snap" $((at + 40))
		! kvmsnap verify "$dir/copy.snap" 2>"$work/error" || return 1
		grep -q "record of the first generation is damaged" "$work/error"
		! kvmsnap list "$dir/copy.snap" 2>"$work/error" || return 1
		! kvmsnap compact --keep 2 "$dir/copy.snap" 2>"$work/error" || return 1
		cat "$work/error"
		grep -q "record of the first generation is damaged" "$work/error"
		rm "$dir/copy.snap"
		# Nor is one that was whole once taken for none.
		truncate -s -8192 "$(where 2)"
		! kvmsnap verify "$(where 2)" 2>"$work/error" || return 1
		grep -q 'behind generation 1, .* not whole' "$work/error"
		kvmsnap verify --generation 1 "$(where 2)"
	fi
	# A bitmap that has lost a page, of which a checksum is known.
	at=$(perl -e 'open(F, "<", $ARGV[0]); read(F, my $head, 1 << 20);
		$head =~ /\x06pc\.ram.{8}\0\0\0\x01.{8}(.{8})/s or die; my $at = unpack("Q>", $1);
		seek(F, $at, 0); read(F, my $bits, 4096); $bits =~ /[\x04-\x07\xff]/ or die; print $at + $-[0]' "$(where 1)")
	flip "$(where 1)" "$at"
	! kvmsnap verify --generation 1 "$(where 1)" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'generation 1: page .* of RAM block pc.ram is missing' "$work/error"
}

# A save that waits for another one's end can be interrupted.
interrupted_in_line() {
	local first
	start -m ${mem}M
	kvmsnap save --incremental --live --bandwidth 1M --qmp "$work/a.qmp" --output "$(where 1)" --quiet &
	first=$!
	sleep "${KVMSNAP_SLOW:-1}"
	kvmsnap save --incremental --qmp "$work/a.qmp" --output "$dir/second.snap" --quiet &
	sleep "${KVMSNAP_SLOW:-1}"
	kill -INT $!
	wait $! && return 1 || [ $? = 130 ]
	[ -d /proc/$first ]
	kill -INT $first
	! wait $first || return 1
	[ ! -e "$dir/second.snap" ]
	# One that comes when there is no save ends nothing.
	pkill -INT -x kvmsnap-keep
	sleep 0.2
	pgrep -x kvmsnap-keep
	guest_goes_on a
}

# What the guest writes into its device state does not hide what follows that in the file.
feigned_end() {
	local n
	start -m ${mem}M
	incremental 1
	feign_end a "$(where 1)"
	for n in 2 3 4; do
		incremental "$n"
		[ "$n" = 4 ] || go_on
	done
	[ "$(kvmsnap list --json "$dir" | jq -c '[.[] | has("error")]')" = '[false,false,false,false]' ]
	rest
	if [ $content = appended ]; then
		keepers_end
		kvmsnap compact --keep 2 "$(where 4)"
		kvmsnap list --json "$(where 4)" | jq -r '.[-1].incoming' | sed 's/^file://' >"$work/at.4"
	fi
	restored_goes_on "$(cat "$work/at.4")" plain -m ${mem}M
}

usage_errors() {
	local c
	for c in "checkpoint" "checkpoint --qmp x" "checkpoint --qmp x --dir / --every y" "checkpoint --qmp x --dir / --keep 0" \
		"checkpoint --qmp x --dir / --name a/b" "checkpoint --qmp x --dir / --max-passes 2" "list" "compact --keep 0 x" \
		"save --qmp x --fd 3 --incremental" "info --generation 0 x"; do
		# shellcheck disable=SC2086
		kvmsnap $c 2>"$work/error" && return 1
		[ "${PIPESTATUS[0]}" = 2 ] || [ $? = 2 ]
		grep -q '^usage: kvmsnap' "$work/error"
	done
	! kvmsnap checkpoint --qmp /nowhere --dir "$dir" 2>"$work/error" || return 1
	grep -q 'QMP socket /nowhere' "$work/error"
	! flock "$dir/.vm.lock" kvmsnap checkpoint --qmp /nowhere --dir "$dir" 2>"$work/error" || return 1
	grep -q 'another kvmsnap checkpoint' "$work/error"
}

# What has nothing to do with where generations lie, only where they are files of their own.
tap_once() { [ $content != clone ] || tap_case "$@"; }

# Those that can share a guest come one after the other.
tap_once "usage errors" usage_errors
tap_case "each is exact, pc" exact_each_time 4 -m ${mem}M
tap_once "throttled" throttled_once
tap_case "interrupted, then again" failing_between interrupted
tap_case "disk full, then again" failing_between disk_full
tap_once "nowhere to write to, then again" failing_between no_disk
tap_case "two in a row fail" without_thp failing_twice
tap_case "checkpoints under load" checkpoints
[ $content = clone ] || tap_case "a limit of the file's size" file_limit
[ $content = clone ] || tap_case "no room to compact" no_room_to_compact
tap_once "three are the first" first_at_once
tap_case "a feigned end of device state" feigned_end
tap_case "damage is found" damaged
tap_case "interrupted in line" interrupted_in_line
[ $content = clone ] || tap_case "a record is lost" record_lost
[ $content = clone ] || tap_case "a record that can't be read" bad_sector
tap_once "the base is kept" base_is_kept
tap_once "odd names" odd_names
tap_case "the keeper killed" keeper_killed
tap_case "closed outputs" closed_outputs
tap_case "the first save fails" first_fails
tap_once "a hidden writer plugged in between" hidden_writer_plugged
tap_once "another QEMU in its place" another_qemu
tap_once "a device's queue used in the pause" queue_used
[ $content = appended ] && [ -z "${KVMSNAP_CHECKPOINTS:-}" ] ||
	tap_case "each is exact, q35, 2 vCPUs, a file system under load" files_too "${KVMSNAP_CHECKPOINTS:-4}" -machine q35 -smp 2 -m ${mem}M
tap_once "no dirty ring" without_ring
tap_case "memory plugged in between" plugged_between
tap_end
