#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Live saves of stock QEMU that fail, of whatever and wherever: the guest runs on, nothing is left of
# the save, and QEMU logs no writes any more.
# shellcheck source=tools/testing/selftests/kvmsnap/lib.sh
. /usr/lib/kvmsnap-tests/lib.sh
dir=${KVMSNAP_DIR:?}
trap 'guest_kill a' EXIT

mem=160
work_args="fill=24 zero=4 tick=100 writers=2 write=6"
# Passes until they don't get shorter.
live="--live --max-downtime 1us --allow-downtime 60s"
GUEST_RING=1024

# The guest that saves fail of: one for all of them.
begin_failing() {
	rm -f "$dir/snap"*
	guest_again a "$work_args" -m ${mem}M
	guest_goes_on a
}

# Fail in the middle of a live save, by the function given: the guest never stopped.
failing() {
	local ticks
	begin_failing
	ticks=$(last_tick a)
	"$@"
	[ ! -e "$dir/snap" ]
	[ ! -e "$dir/snap.partial" ]
	[ "$(guest_status a)" = running ]
	guest_goes_on a
	[ "$(last_tick a)" -gt "$ticks" ]
	await 3 not_logging a
	await 10 module_unused
}

# The guest changes too much for the pause that is allowed.
too_long() {
	! kvmsnap save --live --max-downtime 1ms --qmp "$work/a.qmp" --output "$dir/snap" 2>"$work/error" || return 1
	cat "$work/error"
	grep -q 'allow more with --allow-downtime' "$work/error"
}

# A save to FILE that is in its second pass or a later one; its process, $saver, is held there, so
# as not to be done before the caller strikes and sends it SIGCONT.  Unlimited, all passes from the second
# on may be over between two looks.
begin_save() {
	local i
	# shellcheck disable=SC2086
	kvmsnap save $live --bandwidth 20M --qmp "$work/a.qmp" --output "$1" 2>"$work/error" &
	saver=$!
	for i in $(seq 300); do
		sleep 0.05
		kill -STOP $saver || { cat "$work/error"; return 1; }
		[ "$(kvmsnap status --json | jq '.[0].pass // 0')" -ge 2 ] && return
		kill -CONT $saver
	done
	return 1
}

# After SIGNAL to the helper.
signalled() {
	local saver
	begin_save "$dir/snap"
	# A killed one does not stay stopped, and may be gone.
	kill -"$1" $saver
	[ "$1" = KILL ] || kill -CONT $saver
	! wait $saver || return 1
	[ "$1" != KILL ] || await 5 gone "$dir/snap.partial"
}

# Break the QMP connection of a process, as if QEMU had closed it.  It is held meanwhile, so as not
# to be done before.
lose_qmp() {
	kill -STOP "$1"
	perl -MSocket -e 'my $pid = shift() + 0;
		my $pidfd = syscall(434, $pid, 0);	# pidfd_open, pidfd_getfd
		for (glob "/proc/$pid/fd/*") {
			next unless readlink($_) =~ /^socket:/ && m{(\d+)$};
			my $fd = syscall(438, $pidfd, $1 + 0, 0);
			die "pidfd_getfd: $!" if $fd < 0;
			open(my $socket, "+<&=", $fd) or die "open: $!";
			shutdown($socket, 2);
		}' "$1"
	kill -CONT "$1"
}

# The guardian has the guest go on, which may have been stopped for its soft-dirty bits.
guardian_resumes() { await 5 guest_is a running; }

qmp_lost() {
	local saver
	begin_save "$dir/snap"
	lose_qmp $saver
	! wait $saver || return 1
	cat "$work/error"
	grep -q 'QMP: ' "$work/error"
	guardian_resumes
}

# The guest is stopped, and nobody but the guardian is there to have it go on.
qmp_lost_stopped() {
	local saver
	writes_take 300
	kvmsnap save --qmp "$work/a.qmp" --output "/dev/mapper/${KVMSNAP_DM:?}" 2>"$work/error" &
	saver=$!
	await 10 guest_is a paused
	lose_qmp $saver
	! wait $saver || return 1
	writes_take 0
	cat "$work/error"
	grep -q 'QMP: ' "$work/error"
	guardian_resumes
}

# kill -9 at moments by chance, from before the first pass to after the last, and as soon as there is
# a file: it is there whole, or not at all.
killed_anywhere() {
	local saver i began took left when
	RANDOM=$1
	began=$(date +%s%N)
	kvmsnap save --live --max-passes 2 --allow-downtime 60s --stage 16M --qmp "$work/a.qmp" --output "$dir/snap" --quiet
	took=$((($(date +%s%N) - began) / 1000))
	for i in $(seq 12); do
		rm -f "$dir/snap"
		kvmsnap save --live --max-passes 2 --allow-downtime 60s --stage 16M --qmp "$work/a.qmp" \
			--output "$dir/snap" --quiet 2>/dev/null &
		saver=$!
		if [ "$i" -gt 8 ]; then
			when="as soon as there was a file"
			while [ ! -e "$dir/snap.partial" ] && kill -0 $saver; do :; done
		else
			left=$((RANDOM * took / 32768))
			when="after $left of $took us"
			sleep "$((left / 1000000)).$(printf %06d $((left % 1000000)))"
		fi
		kill -9 $saver || true
		wait $saver || true
		await 10 gone "$dir/snap.partial"
		await 10 guest_is a running
		echo "killed $when; $([ -e "$dir/snap" ] && echo a file || echo none)"
		[ ! -e "$dir/snap.partial" ]
		[ ! -e "$dir/snap" ] || kvmsnap verify "$dir/snap"
		[ "$(guest_status a)" = running ]
		await 3 not_logging a
	done
	rm -f "$dir/snap"
}

disk_full() {
	local small=$work/small-disk
	truncate -s 320M "$dir/small.img"
	mkfs.xfs -qf "$dir/small.img"
	mkdir -p "$small"
	mount -o loop "$dir/small.img" "$small"
	leave_free "$small" $((12 << 20))
	# shellcheck disable=SC2086
	! kvmsnap save $live --qmp "$work/a.qmp" --output "$small/snap" 2>"$work/error" || return 1
	cat "$work/error"
	[ ! -e "$small/snap.partial" ]
	umount "$small"
	rm -f "$dir/small.img"
	grep -q 'No space left' "$work/error"
}

disk_fails() {
	local saver
	# Slow enough for the save not to be over before it fails.
	writes_take 300
	begin_save "/dev/mapper/${KVMSNAP_DM:?}"
	dm_load "0 $(blockdev --getsz "$(disk 1)") error"
	kill -CONT $saver
	! wait $saver || return 1
	writes_take 0
	cat "$work/error"
	grep -q 'Input/output error' "$work/error"
}

# A device whose state is not saved comes while the guest runs on.
unsaveable_plugged() {
	local saver
	kvmsnap save --live --bandwidth 10M --allow-downtime 60s --qmp "$work/a.qmp" --output "$dir/snap" 2>"$work/error" &
	saver=$!
	await 10 session_is "running 1"
	qmp a '{"execute":"object-add","arguments":{"qom-type":"memory-backend-ram","id":"shm","size":1048576,"share":true}}' \
		'{"execute":"device_add","arguments":{"driver":"ivshmem-plain","id":"shmem","memdev":"shm","master":"off"}}' |
		grep -c '"return"' | grep -qx 2
	! wait $saver || return 1
	cat "$work/error"
	grep -q "can't be saved" "$work/error"
	# The next case wants another guest.
	rm "$work/a.how"
}

# The disk takes no more when the guest has stopped for the last of it.
disk_hangs() {
	local saver slow=${KVMSNAP_SLOW:-1}
	begin_failing
	kvmsnap save --live --bandwidth 40M --max-passes 1 --allow-downtime $((20 * slow))s --qmp "$work/a.qmp" \
		--output "/dev/mapper/${KVMSNAP_DM:?}" 2>"$work/error" &
	saver=$!
	await 10 session_is "running 1"
	kill -STOP $saver
	await 10 session_is "idle 1"
	writes_take $((120000 * slow))
	kill -CONT $saver
	await 10 guest_is a paused
	await 30 guest_is a running
	# What it has on the way is given to it.
	writes_take 0
	! wait $saver || return 1
	cat "$work/error"
	grep -q 'stopped for longer than is allowed' "$work/error"
	guest_goes_on a
	await 3 not_logging a
	await 10 module_unused
}

# Another client has the VM migrated while it is stopped to be saved: it runs elsewhere then, and not here too,
# whether the helper is there to see it or is killed.
migrated() {
	local saver
	writes_take $((700 * ${KVMSNAP_SLOW:-1}))
	begin_failing
	kvmsnap save --qmp "$work/a.qmp" --output "/dev/mapper/${KVMSNAP_DM:?}" 2>"$work/error" &
	saver=$!
	await 15 guest_is a paused
	qmp a '{"execute":"migrate","arguments":{"uri":"exec:cat >/dev/null"}}' | grep '"return"'
	await 15 guest_is a postmigrate
	[ -d /proc/$saver ]
	[ "$1" != killed ] || kill -KILL $saver
	! wait $saver || return 1
	writes_take 0
	cat "$work/error"
	[ "$1" = killed ] || grep -q "QEMU is in state 'postmigrate'" "$work/error"
	await 10 no_process kvmsnap-guard
	guest_is a postmigrate
	guest_kill a
}

# The helper is killed while such a migration is about to end; then it is cancelled, and the guest goes on.
migration_cancelled() {
	local saver
	writes_take $((700 * ${KVMSNAP_SLOW:-1}))
	begin_failing
	qmp a '{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"pause-before-switchover","state":true}]}}'
	kvmsnap save --qmp "$work/a.qmp" --output "/dev/mapper/${KVMSNAP_DM:?}" &
	saver=$!
	await 15 guest_is a paused
	qmp a '{"execute":"migrate","arguments":{"uri":"exec:cat >/dev/null"}}' | grep '"return"'
	await 15 guest_is a finish-migrate
	kill -KILL $saver
	! wait $saver || return 1
	writes_take 0
	sleep 1
	pgrep -x kvmsnap-guard
	guest_is a finish-migrate
	qmp a '{"execute":"migrate_cancel"}'
	await 10 no_process kvmsnap-guard
	guest_is a running
	guest_goes_on a
	guest_kill a
}

# QEMU is killed in the middle: the helper says so, and leaves nothing.
qemu_killed() {
	local saver i
	begin_failing
	begin_save "$dir/snap"
	guest_kill a
	kill -CONT $saver
	! wait $saver || return 1
	cat "$work/error"
	[ ! -e "$dir/snap" ]
	[ ! -e "$dir/snap.partial" ]
	await 5 module_unused
}

tap_case "given up: the pause would be too long" failing too_long
tap_case "interrupted in the middle" failing signalled INT
tap_case "the helper killed in the middle" failing signalled KILL
tap_case "the disk full" failing disk_full
tap_case "the disk fails" failing disk_fails
tap_case "the disk hangs while the guest is stopped" disk_hangs
tap_case "a device that can't be saved plugged in" failing unsaveable_plugged
tap_case "QMP lost in the middle" failing qmp_lost
tap_case "QMP lost while the guest is stopped" failing qmp_lost_stopped
seed=${KVMSNAP_SEED:-$(($(date +%s) % 32768))}
tap_case "the helper killed anywhere, seed $seed" failing killed_anywhere "$seed"
tap_case "QEMU killed in the middle" qemu_killed
tap_case "migrated in the middle" migrated seen
tap_case "migrated in the middle, and the helper killed" migrated killed
tap_case "a migration cancelled in the middle, and the helper killed" migration_cancelled
tap_end
