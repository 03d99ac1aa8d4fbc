#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Eight guests at once.  First all are saved at the same time, again and again: none waits much longer
# than the others.  Then, for KVMSNAP_SOAK seconds (60), each is saved, live and stopped, interrupted,
# and killed, command or QEMU, at moments by chance (KVMSNAP_SEED repeats them); at the end nothing
# that was taken in the kernel is held.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
guests="1 2 3 4 5 6 7 8"
trap 'end_all' EXIT
GUEST_RING=4096
soak=${KVMSNAP_SOAK:-60}
seed=${KVMSNAP_SEED:-$(($(date +%s) % 32768))}

end_all() {
	local g
	for g in $guests; do guest_kill "$g"; done
	keepers_end
}

# Every second one has work to do.
start() {
	guest_start "$1" "fill=8 zero=2 tick=200 writers=$(($1 % 2)) write=2" -m 128M
}

# What the kernel holds for us, in words that diff compares, but for slabs: KiB that can't be reclaimed.
held() {
	echo 1 >/proc/sys/vm/stat_refresh
	awk '$1 == "nr_foll_pin_acquired" { n += $2 } $1 == "nr_foll_pin_released" { n -= $2 } END { print "pages pinned:", n }' /proc/vmstat
	echo "areas of vmalloc: $(grep -c '\[kvmsnap\]' /proc/vmallocinfo || true)"
	echo "users of the module: $(cat /sys/module/kvmsnap/refcnt)"
	echo "VMs: $(find /sys/kernel/debug/kvm -mindepth 1 -maxdepth 1 -type d | wc -l)"
	# Kernel threads have names of ours too, for as long as they work for us.
	echo "processes: $(pgrep -xc 'kvmsnap(-keep|-guard)?|qemu-system-x86' || true)"
}
slab() { awk '/^SUnreclaim/ { print $2 }' /proc/meminfo; }

one_save() {
	kvmsnap save --live --max-passes 3 --max-downtime 1us --allow-downtime 60s --qmp "$work/$1.qmp" --output "$dir/$1.snap" \
		--force --sync data --json >"$work/report.$1"
}

saved_at_once() {
	local g n
	for g in $guests; do start "$g"; done
	for n in 1 2 3; do
		for g in $guests; do one_save "$g" & done
		for _ in $guests; do wait -n; done
		for g in $guests; do jq .seconds "$work/report.$g" >>"$work/seconds.$g"; done
	done
	for g in $guests; do
		kvmsnap verify "$dir/$g.snap"
		guest_goes_on "$g"
		awk '{ s += $1 } END { print s / NR }' "$work/seconds.$g"
	done | tee /dev/stderr | grep '^[0-9.]*$' | awk '{ s += $1; if ($1 > max) max = $1 } END {
		printf "# mean %.2f s, slowest %.2f s\n", s / NR, max; exit !(NR == 8 && max <= 2 * s / NR) }' >&3
}

# trouble GUEST: it did not start; what is known of it.
trouble() {
	local t
	{
		echo "guest $1 did not start at $(date +%T): $(guest_status "$1")"
		cat "$work/said.$1"
		for t in /proc/"$(cat "$work/$1.pid")"/task/*; do echo "$(cat "$t/comm"): $(head -n 3 "$t/stack" | tr '\n' ' ')"; done
		uptime
	} >>"$work/trouble" 2>&1
}

# chaos GUEST UNTIL: counts what it did in $work/did.GUEST.
chaos() {
	local save="kvmsnap save --qmp $work/$1.qmp --output $dir/$1.snap --force --quiet --sync none" what ms pid
	RANDOM=$((seed + $1))
	while [ "$(date +%s)" -lt "$2" ]; do
		what=$((RANDOM % 10)) ms=$((RANDOM % 1500))
		case $((RANDOM % 3)) in
		0) $save & ;;
		1) $save --live --max-passes 2 --max-downtime 1us --allow-downtime 60s --stage 4M & ;;
		2) $save --live --bandwidth 4M --allow-downtime 60s & ;;
		esac >/dev/null 2>&1
		pid=$!
		[ "$what" -ge 6 ] || sleep $((ms / 1000)).$(printf %03d $((ms % 1000)))
		case $what in
		0 | 1 | 2)
			kill -INT $pid || true
			echo interrupt
			;;
		3 | 4)
			kill -9 $pid || true
			echo kill
			;;
		5)
			guest_kill "$1"
			wait $pid || true
			start "$1" 2>"$work/said.$1" || trouble "$1"
			echo restart
			;;
		*) echo save ;;
		esac >>"$work/did.$1" 2>/dev/null
		wait $pid 2>/dev/null || true
	done
}

at_random() {
	local g until slab_before slab_after chaos=()
	rm -f "$work"/did.* "$work/trouble"
	end_all
	held >"$work/before"
	slab_before=$(slab)
	for g in $guests; do start "$g"; done
	until=$(($(date +%s) + soak))
	for g in $guests; do
		chaos "$g" $until &
		chaos+=($!)
	done
	# Not for the guests.
	for g in "${chaos[@]}"; do wait "$g"; done
	[ ! -e "$work/trouble" ] || { cat "$work/trouble"; return 1; }
	sort "$work"/did.* | uniq -c | sed 's/^/# /' >&3
	# The last ones killed may still be resumed by their guardians.
	for g in $guests; do
		guest_goes_on "$g"
		one_save "$g"
		kvmsnap verify "$dir/$g.snap"
	done
	end_all
	sleep 2
	held >"$work/after"
	slab_after=$(slab)
	sed 's/^/# /' "$work/after" >&3
	echo "# slabs: $slab_before KiB before, $slab_after KiB after" >&3
	diff "$work/before" "$work/after"
	[ $((slab_after - slab_before)) -lt 8192 ]
}

tap_case "eight saved at once" saved_at_once
tap_case "eight at random for $soak s, seed $seed" at_random
tap_end
