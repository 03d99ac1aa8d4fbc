# SPDX-License-Identifier: GPL-2.0
# Paths and helpers shared by the scripts that build and boot the test machine.
# Sourced, not run.  Everything built lives in the cache, outside the clone, under
# a name made of what it was built from: a stale one is never found.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../../.." && pwd)
cache=${KVMSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvmsnap}

die() {
	echo "kvmsnap-vm: $*" >&2
	exit 1
}

# The root file system is named after its recipe.
root_dir() {
	echo "$cache/root-$(cat "$here/root" "$here/root-kernels" | sha256sum | cut -c1-12)"
}

# kernel_release ROOT 6.12|debug: the full release of that kernel, as uname -r prints it.
kernel_release() {
	local k
	if [ "$2" = debug ]; then
		k=$(cd "$1/lib/modules" && ls -d -- *-kvmsnap-debug 2>/dev/null)
	else
		k=$(cd "$1/lib/modules" && ls -d "$2".* 2>/dev/null | grep -v kvmsnap-debug | sort -V | tail -1)
	fi
	[ -n "$k" ] || die "no kernel $2; there are: $(cd "$1/lib/modules" && ls -x)"
	echo "$k"
}

# kernel_recipe RELEASE: the script that builds that kernel, if one of ours does: it keeps its name when it is built anew.
kernel_recipe() {
	case $1 in *-kvmsnap-debug) echo "$here/debug-kernel" ;; esac
}

# kernel_image ROOT RELEASE: newer packages keep it beside its modules.
kernel_image() {
	if [ -e "$1/lib/modules/$2/vmlinuz" ]; then
		echo "$1/lib/modules/$2/vmlinuz"
	else
		echo "$1/boot/vmlinuz-$2"
	fi
}

# Run "$@" in ROOT with the clone at its own path (read-only) and a build folder.
# in_root ROOT BUILD COMMAND...
in_root() {
	local root=$1 build=$2
	shift 2
	mkdir -p "$root$top" "$root/build"
	# shellcheck disable=SC2016
	unshare --mount --propagation private sh -ec '
		root=$1 build=$2 top=$3; shift 3
		mount -t proc proc "$root/proc"
		mount --bind /dev "$root/dev"
		mount --bind "$top" "$root$top"
		mount -o remount,bind,ro "$root$top"
		mount --bind "$build" "$root/build"
		exec chroot "$root" "$@"' sh "$root" "$build" "$top" "$@"
}

# One builder at a time for each thing built, until the script ends.
lock() {
	mkdir -p "$cache"
	exec 9>"$cache/$1.lock"
	flock 9
}
