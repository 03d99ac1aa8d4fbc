#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Live saves of stock QEMU: a guest that rewrites its memory, and whose memory the host writes
# (disk reads, ballooning, hotplug), is saved while it runs.  The file equals the RAM of the
# stopped guest byte for byte, read by ramcmp; stock QEMU restores it, and the guest's own
# checks find no error.
#
# With a dirty ring (GUEST_RING entries) the module observes it, and soft-dirty bits tell of the
# host's writes to private anonymous memory; without, all memory is compared.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
trap 'guest_kill a; guest_kill b' EXIT

mem=160
work_args="fill=24 zero=4 tick=100 writers=2 write=6"
# The machine is slow, and what is tested here is not how long the pause is, but that
# passes go on while the guest writes: several, however short.
live="--live --max-downtime 1us --allow-downtime $((60 * ${KVMSNAP_SLOW:-1}))s"
GUEST_RING=1024

# What was to be looked at with the guest stopped: "some" where bits tell, "all" where they don't,
# "any" where much comes and goes.
looks=some

# came NAME "KERNEL ARGS": how often the host has written to the guest's memory, in the way that the guest is
# made for: reads of its disk, by QEMU's count, or packets.
came() {
	case $2 in
	*disk=1*) qmp "$1" '{"execute":"query-blockstats"}' | jq 'select(.return) | [.return[].stats.rd_operations] | add' ;;
	*net=1*) guest_count "$1" reads ;;
	esac
}

# live_trip "KERNEL ARGS" MIDDLE ARG...: MIDDLE is called while the save runs.  With $again, the guest may be
# one that another case has left, and is left.
again=
live_trip() {
	local args=$1 middle=$2 writes reads modes saver
	shift 2
	rm -f "$dir/snap"
	[ -n "$again" ] || guest_kill a
	guest_again a "$args" "$@"
	guest_goes_on a
	writes=$(guest_count a writes) reads=$(came a "$args") modes=$(guest_count a modes)
	# shellcheck disable=SC2086
	kvmsnap save $live --qmp "$work/a.qmp" --output "$dir/snap" --stay-stopped --json >"$work/report" &
	saver=$!
	$middle a
	wait $saver
	cat "$work/report"
	[ "$(guest_status a)" = paused ]
	# It ran during the save, and its memory was written in the way that is named.
	[ "$(jq .live_passes "$work/report")" -ge "${passes:-2}" ]
	[ "$(jq .paused_written_bytes "$work/report")" -lt "$(jq .written_bytes "$work/report")" ]
	# What it wrote meanwhile, by the module's count: the console may be behind.
	[ "$writes" -gt 0 ]
	# A throttled guest may sleep through the last pass.
	[ "$(jq '.throttled or (.changed_bytes_per_second > 100000 or .live_passes == 1) and .paused_written_bytes + .staged_bytes > 0' "$work/report")" = true ]
	case ${tracking:-} in
	"") jq -e ".tracking == \"$([ -n "$GUEST_RING" ] && echo ring || echo compare)\"" "$work/report" ;;
	*) jq -e ".tracking | test(\"$tracking\")" "$work/report" ;;
	esac
	case $looks in
	some) [ "$(jq '.soft_dirty and .paused_compared_bytes < .ram_bytes * 0.75' "$work/report")" = true ] ;;
	all) [ "$(jq '.paused_compared_bytes > .ram_bytes * 0.9' "$work/report")" = true ] ;;
	esac
	await 3 not_logging a
	[ -z "$reads" ] || [ "$(came a "$args")" -gt "$((reads + ${least:-10}))" ]
	case $args in *video=1*) [ "$(guest_count a modes)" -gt "$((modes + 10))" ] ;; esac
	same_ram a "$dir/snap"
	kvmsnap verify "$dir/snap"
	[ -n "$again" ] || guest_kill a
	# By turns: what the file is has been seen, and qemu_test.sh loads such files both ways.
	# shellcheck disable=SC2046
	restored_goes_on "$dir/snap" "$(flavour_in_turn)" "$@" $(${middle}_restored)
}

nothing() { :; }
nothing_restored() { :; }

# Memory that QEMU gets while it is saved.
plug_memory() {
	sleep 0.5
	qmp "$1" '{"execute":"object-add","arguments":{"qom-type":"memory-backend-ram","id":"more","size":33554432}}' \
		'{"execute":"device_add","arguments":{"driver":"pc-dimm","id":"dimm","memdev":"more"}}' | grep -c '"return"' |
		grep -qx 2
}
plug_memory_restored() {
	echo "-object memory-backend-ram,id=more,size=32M -device pc-dimm,id=dimm,memdev=more"
}

balloon() {
	local i took=
	for i in 60 10 70 0 40; do
		sleep 0.2
		qmp "$1" "{\"execute\":\"balloon\",\"arguments\":{\"value\":$(((mem - i) << 20))}}" | grep -q '"return"' || return
		sleep 0.2
		# The guest has done something of what it was asked for.
		qmp "$1" '{"execute":"query-balloon"}' | grep -q "\"actual\": $((mem << 20))" || took=1
	done
	[ -n "$took" ]
}
balloon_restored() { :; }

# with_disk "AIO OPTIONS": its contents are random.  A vCPU for who reads, so that much comes in until the end.
with_disk() {
	local GUEST_MODULES="virtio_pci virtio_blk" work_args=${work_args/writers=2/writers=1}
	head -c 24M /dev/urandom >"$dir/disk.img"
	live_trip "$work_args disk=1" nothing -smp 2 -m ${mem}M \
		-drive "file=$dir/disk.img,format=raw,if=virtio,read-only=on,file.locking=off,$1"
	rm -f "$dir/disk.img"
}

with_balloon() {
	local GUEST_MODULES="virtio_pci virtio_balloon" live="$live --bandwidth 10M"
	live_trip "$work_args" balloon -m ${mem}M -device virtio-balloon-pci
}

with_hugetlb() {
	local looks=all
	trap 'guest_kill a; guest_kill b; echo 0 >/proc/sys/vm/nr_hugepages' EXIT
	echo $((mem / 2 + 8)) >/proc/sys/vm/nr_hugepages
	live_trip "$work_args" nothing -machine pc,memory-backend=m0 \
		-object memory-backend-memfd,id=m0,size=${mem}M,hugetlb=on -m ${mem}M
}

# with_memfd ARG...
with_memfd() {
	local looks=all
	live_trip "$work_args" nothing -machine pc,memory-backend=m0 \
		-object memory-backend-memfd,id=m0,size=${mem}M,share=on -m ${mem}M "$@"
}

# with_net on|off: packets come in, by vhost-net in the kernel or by QEMU.
with_net() {
	local GUEST_MODULES="virtio_pci virtio_net"
	trap 'guest_kill a; guest_kill b; [ -z "${sender:-}" ] || kill $sender; ip link del kvmsnap0' EXIT
	modprobe tun
	modprobe vhost_net
	ip tuntap add kvmsnap0 mode tap
	ip addr add 10.217.0.1/24 dev kvmsnap0
	ip link set kvmsnap0 up
	while sleep 0.01; do
		head -c 64000 /dev/urandom | socat -u -b 1400 - UDP4-DATAGRAM:10.217.0.255:9,broadcast || true
	done 2>/dev/null &
	sender=$!
	live_trip "$work_args net=1" nothing -m ${mem}M -device virtio-net-pci,netdev=n0,romfile= \
		-netdev tap,id=n0,ifname=kvmsnap0,script=no,downscript=no,vhost="$1"
}

with_video() {
	# The memslots change all the time: everything is compared.  Slow enough for many changes, each of
	# which takes half a second here: all of the guest's memory is mapped anew.
	local looks=any live="$live --bandwidth $((5000 / ${KVMSNAP_SLOW:-1}))K"
	live_trip "$work_args video=1" nothing -machine pc -vga std -m ${mem}M
}

# A vCPU, with a ring of its own, that the guest gets while it is saved.
cpu="host-x86_64-cpu,id=cpu1,socket-id=1,core-id=0,thread-id=0"
plug_cpu() {
	sleep 0.5
	qmp "$1" '{"execute":"device_add","arguments":{"driver":"host-x86_64-cpu","id":"cpu1","socket-id":1,"core-id":0,"thread-id":0}}' |
		tee "$work/plug"
	cat "$work/plug"
	grep -q '"return"' "$work/plug"
	wait_for "$1" ' cpus 2' 30
	[ "$(guest_status "$1")" = running ]
}
plug_cpu_restored() {
	echo "-device $cpu"
}

with_plugged_cpu() {
	# Slow enough for the guest to see it meanwhile.
	local looks=any live="$live --bandwidth $((10000 / ${KVMSNAP_SLOW:-1}))K"
	live_trip "$work_args online=1" plug_cpu -machine pc -smp 1,sockets=2,maxcpus=2 -m ${mem}M
}

without_ring() {
	local GUEST_RING="" looks=all
	"$@"
}

# QEMU does not log a DIMM that is plugged in while it logs (pc_dimm_plug() makes it migratable
# last): then it takes comparing.
with_plugged_memory() {
	local looks=any tracking="ring|compare"
	live_trip "$work_args" plug_memory -m 208M,slots=2,maxmem=512M
}

merge() { await 20 merged; }
merged() { [ "$(cat /sys/kernel/mm/ksm/pages_sharing)" -gt 0 ]; }
merge_restored() { :; }

with_ksm() {
	local looks=any
	echo 1 >/sys/kernel/mm/ksm/run
	echo 2000 >/sys/kernel/mm/ksm/pages_to_scan
	live_trip "$work_args" merge -machine pc,mem-merge=on -m ${mem}M
	echo 2 >/sys/kernel/mm/ksm/run
	echo 0 >/sys/kernel/mm/ksm/run
}

# kvmsnap has looked at soft-dirty bits, with the VM stopped, and is about to clear them: the port's reader reads on,
# all that there is.
read_on() {
	await 90 [ -e "$KVMSNAP_HOLD" ]
	kill -USR1 "$reader"
	await 5 gone "$work/waits"
	sleep "${KVMSNAP_SLOW:-1}"
	rm "$KVMSNAP_HOLD"
}
read_on_restored() { :; }

# What a virtio-serial port's device takes from its queue then, bits never tell, and the guest, which has no more to
# write, does not touch that memory again; nor has it a bit in common with what is written, as in a huge page.
with_port() {
	local again=1 mem=180 reader port live="$live --max-passes 3"
	local work_args="${work_args/write=6/write=20} rest=20 port=200" GUEST_MODULES="virtio_pci virtio_console"
	local -x KVMSNAP_HOLD=$work/hold KVMSNAP_HOLD_PASS=$((30 * ${KVMSNAP_SLOW:-1}))
	# ASan wants to be the first.
	local -x ASAN_OPTIONS=${ASAN_OPTIONS:-}:verify_asan_link_order=0
	port=(-m ${mem}M -device virtio-serial -chardev "socket,id=port,path=$work/port,server=on,wait=off" -device virtserialport,chardev=port)
	kvmsnap() { LD_PRELOAD=$(dirname "$0")/hold_clear.so command kvmsnap "$@"; }
	guest_again a "$work_args" "${port[@]}"
	read_port "$work/port" "$work/waits" &
	reader=$!
	await 60 [ -e "$work/waits" ]
	live_trip "$work_args" read_on "${port[@]}"
	guest_kill a
}

staged() {
	local live="$live --stage 64M" again=1
	live_trip "$work_args" nothing -m ${mem}M
	[ "$(jq '.staged_bytes > 0' "$work/report")" = true ]
}

# Each write to the disk takes 200 ms, and the guest does not wait for them.
slow_disk() {
	local ticks dev=/dev/mapper/${KVMSNAP_DM:?}
	writes_take 200
	guest_again a "$work_args" -m ${mem}M
	guest_goes_on a
	ticks=$(last_tick a)
	kvmsnap save --live --max-passes 2 --max-downtime 1us --allow-downtime 60s --stage 64M \
		--qmp "$work/a.qmp" --output "$dev" --json >"$work/report"
	writes_take 0
	cat "$work/report"
	[ "$(jq '.staged_bytes > 0 and .phases.stage > 0.15' "$work/report")" = true ]
	[ "$(guest_status a)" = running ]
	guest_goes_on a
	[ "$(last_tick a)" -gt "$ticks" ]
	guest_kill a
	kvmsnap verify "$dev"
	restored_goes_on "$dev" plain -m ${mem}M
}

# Somebody else ends QEMU's limit of the dirty rate, by which it logs, again and again.
cancel_logging() {
	local i
	for i in $(seq 20); do
		sleep 0.1
		qmp "$1" '{"execute":"cancel-vcpu-dirty-limit"}' >/dev/null
	done
}
cancel_logging_restored() { :; }

with_logging_lost() {
	local looks=all tracking=compare live="$live --bandwidth 60M" again=1
	live_trip "$work_args" cancel_logging -m ${mem}M
}

# No faster than that while the guest runs, and as fast as can be when it does not.
with_bandwidth() {
	local live="$live --bandwidth 40M --max-passes 2" again=1
	live_trip "$work_args" nothing -m ${mem}M
	jq -e '.phases.live > 0.9 * (.written_bytes - .paused_written_bytes) / (40 * 1048576)' "$work/report"
}

# Passes don't get shorter: QEMU slows the guest down, and does so no more afterwards.
with_throttle() {
	local live="$live --throttle 1M" again=1
	live_trip "$work_args" nothing -m ${mem}M
	[ "$(jq .throttled "$work/report")" = true ]
}

# random_trip SEED: all of it by chance.
random_trip() {
	# One that is short, by chance, on a busy machine may see few reads.
	local least=0
	local x looks=any passes=1 GUEST_RING args fill zero writers write mem
	RANDOM=$1
	GUEST_RING=$((1024 << RANDOM % 7))
	[ $((RANDOM % 5)) != 0 ] || GUEST_RING=""
	writers=$((1 + RANDOM % 3)) fill=$((8 + RANDOM % 40)) zero=$((RANDOM % 8)) write=$((1 + RANDOM % 12))
	local work_args="fill=$fill zero=$zero tick=100 writers=$writers write=$write"
	mem=$((fill + zero + writers * (write + 2) + 110))
	args="-smp $((1 + RANDOM % 4))"
	case $((RANDOM % 4)) in
	0) args="$args -machine q35 -m ${mem}M" ;;
	1) args="$args -machine pc,memory-backend=m0 -object memory-backend-memfd,id=m0,size=${mem}M,share=on -m ${mem}M" ;;
	2) args="$args -machine pc,mem-merge=on -m ${mem}M" ;;
	3) args="$args -machine pc -m ${mem}M" ;;
	esac
	local live="$live"
	[ $((RANDOM % 2)) = 0 ] || live="$live --stage $((1 << RANDOM % 8))M"
	[ $((RANDOM % 2)) = 0 ] || live="$live --max-passes $((1 + RANDOM % 4))"
	x=nothing
	local GUEST_MODULES=""
	case $((RANDOM % 3)) in
	0)
		GUEST_MODULES="virtio_pci virtio_blk"
		head -c 24M /dev/urandom >"$dir/disk.img"
		work_args="$work_args disk=1"
		args="$args -drive file=$dir/disk.img,format=raw,if=virtio,read-only=on,file.locking=off,cache=none,aio=$([ $((RANDOM % 2)) = 0 ] && echo native || echo io_uring)"
		;;
	1)
		GUEST_MODULES="virtio_pci virtio_balloon"
		x=balloon
		args="$args -device virtio-balloon-pci"
		;;
	esac
	echo "seed $1: ring ${GUEST_RING:-none}, $work_args, $live, $args"
	# shellcheck disable=SC2086
	live_trip "$work_args" $x $args
	rm -f "$dir/disk.img"
}

GUEST_DEFAULTS='' tap_case "writers, pc" live_trip "$work_args" nothing -m ${mem}M
tap_case "writers, no dirty ring" without_ring live_trip "$work_args" nothing -m ${mem}M
tap_case "writers, q35, 3 vCPUs" live_trip "$work_args" nothing -machine q35 -smp 3 -m ${mem}M
tap_case "disk reads, buffered" with_disk cache=writeback,aio=threads
tap_case "disk reads, direct, io_uring" with_disk cache=none,aio=io_uring
tap_case "disk reads, direct, no dirty ring" without_ring with_disk cache=none,aio=native
tap_case "packets" with_net off
tap_case "packets, vhost-net" with_net on
tap_case "ballooning" with_balloon
tap_case "KSM" with_ksm
tap_case "memfd, shared" with_memfd
tap_case "hugetlbfs, 2 MiB" with_hugetlb
tap_case "video modes" with_video
tap_case "memory plugged in the middle" with_plugged_memory
tap_case "a vCPU plugged in the middle" with_plugged_cpu
tap_case "a device's queue used while bits are cleared" without_thp with_port
tap_case "staged" staged
tap_case "logging switched off in the middle" with_logging_lost
tap_case "a limit of the bandwidth" with_bandwidth
tap_case "a guest that is throttled" with_throttle
tap_case "staged, a slow disk" slow_disk
# The seed of the first, to repeat it, and how many.
seed=${KVMSNAP_SEED:-$(($(date +%s) % 32768))}
for i in $(seq "${KVMSNAP_QEMU_ROUNDS:-2}"); do
	tap_case "random_rounds, seed $seed" random_trip "$seed"
	seed=$(((seed + 1) % 32768))
done
tap_end
