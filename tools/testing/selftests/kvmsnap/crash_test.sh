#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kill -9 of every party at moments by chance: the command, the process that follows the VM, the guardian
# with one of them, QEMU.  After each the guest runs on, unless it was QEMU; every committed
# generation is what it was; the next save works, and removes what is left over; nothing is held.
# KVMSNAP_KILLS rounds (6), with a seed that repeats them: KVMSNAP_SEED.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
trap 'guest_kill a; keepers_end' EXIT
mem=128
GUEST_RING=1024
kills=${KVMSNAP_KILLS:-6}
seed=${KVMSNAP_SEED:-$(($(date +%s) % 32768))}
RANDOM=$seed

start() {
	guest_start a "fill=8 zero=2 tick=100 writers=2 write=2 rest=20" -m ${mem}M
	guest_goes_on a
}

# A line for each generation that there is; all are what was written, as their checksums say.
generations() {
	local file
	for file in "$dir"/*.snap; do
		[ -e "$file" ] || continue
		kvmsnap verify "$file" >"$work/verified"
		case $file in */new.snap) ;; *) grep -q 'all as their checksums say' "$work/verified" ;; esac
		kvmsnap list --json "$file" | jq -r '.[] | "\(.file) \(.generation) \(.time) \(.content_bytes)"'
	done
}

# Nobody follows the guest, and nothing in the kernel is held.
let_go() {
	await 10 no_process 'kvmsnap-keep|kvmsnap-guard|kvmsnap' && await 10 module_unused || { pgrep -l kvmsnap; return 1; }
}

# What a round does; an ordinary one is made first where it needs some.
operations=(save live incremental append checkpoint receive compact)
operate() {
	local save="kvmsnap save --qmp $work/a.qmp --quiet --checksum --sync data"
	local live="--live --max-passes 3 --max-downtime 1us --allow-downtime 60s --stage 16M"
	case $1 in
	save) exec $save --output "$dir/new.snap" --force ;;
	live) exec $save $live --output "$dir/new.snap" --force ;;
	incremental) exec $save --incremental $live --output "$dir/next.snap" ;;
	append) exec $save --incremental --output "$dir/first.snap" ;;
	checkpoint)
		mkdir -p "$dir/points"
		exec kvmsnap checkpoint --qmp "$work/a.qmp" --dir "$dir/points" --every 100ms --keep 2 --sync data --quiet --count 4
		;;
	receive)
		qmp a "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"exec:PATH=$PATH exec kvmsnap receive --force $dir/new.snap\"}}"
		sleep 5
		;;
	compact) exec kvmsnap compact --keep 2 "$dir/first.snap" ;;
	esac
}

# make_way OPERATION: all but those that go on from it want the socket and the file to themselves.
make_way() {
	case $1 in append | incremental) ;; *) keepers_end ;; esac
}

# victim WHOM: process numbers.
victim() {
	case $1 in
	command) pgrep -x kvmsnap ;;
	keeper) pgrep -x kvmsnap-keep ;;
	both) pgrep -x 'kvmsnap|kvmsnap-guard' ;;
	qemu) cat "$work/a.pid" ;;
	esac || true
}
victims=(command command command keeper keeper both qemu)

# The guest runs on; where no guardian is left to say so, it is told to, and after a migration that was
# over before the kill.
runs_on() {
	local i status
	[ "$1" = qemu ] && { guest_kill a; start; return; }
	for ((i = 0; i < 100 * ${KVMSNAP_SLOW:-1}; i++)); do
		status=$(guest_status a)
		[ "$status" != running ] || break
		[ "$1" != both ] && [ "$status" != postmigrate ] || qmp a '{"execute":"cont"}' >/dev/null
		sleep 0.1
	done
	[ "$(guest_status a)" = running ]
	guest_goes_on a
}

add_generation() {
	kvmsnap save --qmp "$work/a.qmp" --incremental --output "$dir/first.snap" --checksum --quiet --sync data
}

round() {
	local operation=${operations[RANDOM % ${#operations[@]}]} whom=${victims[RANDOM % ${#victims[@]}]} us file
	us=$((RANDOM * RANDOM % 1200000))
	echo "# $SECONDS s: $operation, $whom killed after $us us" >&3
	[ -e "$work/a.pid" ] || start
	rm -rf "$dir/points"
	# Followed from here on, for these to go on from it.
	case $operation in append | incremental | compact) rm -f "$dir"/*.snap ;; esac
	if [ ! -e "$dir/first.snap" ] || [ "$(stat -c %b "$dir/first.snap")" -gt 1000000 ]; then
		rm -f "$dir"/*.snap
		add_generation
	fi
	if [ $operation = compact ]; then
		add_generation
		add_generation
	fi
	make_way "$operation"
	rm -f "$dir/next.snap"
	generations >"$work/before"
	operate "$operation" >"$work/said" 2>&1 &
	sleep "$((us / 1000000)).$(printf %06d $((us % 1000000)))"
	# It may be over by now.
	victim $whom | xargs -r kill -9 || true
	[ $operation != receive ] || sleep 0.5
	[ $whom != keeper ] || sleep 0.2
	pkill -INT -x kvmsnap || true
	wait $! || true
	runs_on $whom
	keepers_end
	let_go
	if [ -e "$dir/points" ]; then
		kvmsnap list "$dir/points" >/dev/null
		for file in "$dir/points"/*.snap; do
			[ ! -e "$file" ] || kvmsnap verify "$file"
		done
	fi
	generations >"$work/after"
	# All that there was is there, but what was to be replaced or dropped.
	if [ $operation = compact ]; then
		grep first.snap "$work/before" | tail -2 | while read -r line; do grep -qxF "$line" "$work/after"; done
	else
		grep -v "new.snap" "$work/before" | while read -r line; do grep -qxF "$line" "$work/after"; done
	fi
	! grep -q new.snap "$work/before" || grep -q new.snap "$work/after"
	# What is left over goes with the next.
	kvmsnap save --qmp "$work/a.qmp" --output "$dir/new.snap" --force --quiet --sync data
	[ ! -e "$dir/new.snap.partial" ]
	kvmsnap verify "$dir/new.snap"
	let_go
}

# Nobody is killed, and each operation works.
unharmed() {
	local operation
	start
	add_generation
	for operation in append incremental save compact checkpoint live receive; do
		echo "$operation"
		make_way $operation
		(operate $operation)
	done
	await 10 no_process kvmsnap
	[ -e "$dir/new.snap" ]
	[ "$(generations | wc -l)" = 4 ]
	kvmsnap list "$dir/points"
	runs_on nobody
}

all_rounds() {
	local i
	for i in $(seq "$kills"); do
		round
	done
}

tap_case "nobody killed" unharmed
tap_case "$kills killed, seed $seed" all_rounds
tap_end
