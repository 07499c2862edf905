# What the scripts in this folder share; they source it.
# shellcheck shell=bash disable=SC2034,SC2154

# What is kept between runs. Not in /var/cache, over which virtme-ng mounts an empty file system in its guests: a kernel in
# there would boot and find none of its modules.
cache=${KECHO_CACHE:-/var/lib/kecho}
# Kernels are unpacked here, not installed: that would change what this machine boots next. `own` and `newest` are links
# to the kernel that the distribution boots and to the newest that it has.
kernels=$cache/kernels

die() {
	echo "scripts/${0##*/}: $1" >&2
	exit "${2:-1}"
}

# Runs a command whose output goes to $log alone; a failure names that, and has apt's or pip's own words for it.
quietly() {
	local what=$1
	shift
	"$@" </dev/null >>"$log" 2>&1 && return
	grep -E '^(E|ERROR): ' "$log" | tail -n 1 >&2 || true
	die "$what failed; $log has all of it"
}
