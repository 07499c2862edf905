# Shared by the scripts in this folder, which source it.
# shellcheck shell=bash disable=SC2034,SC2154

# The folder that is kept between runs. It is not in /var/cache, where virtme-ng mounts an empty file system in its guests:
# a kernel from there would boot and not find its modules.
cache=${KECHO_CACHE:-/var/lib/kecho}
# Kernels are unpacked here, not installed, since installing would change what this machine boots. `own` and `newest` are
# links to the kernel that the distribution boots and to its newest one.
kernels=$cache/kernels
# Headers of kernels that are not booted here.
headers=$cache/headers

die() {
	echo "scripts/${0##*/}: $1" >&2
	exit "${2:-1}"
}

# Runs a command with its output in $log. If it fails, prints the error lines of apt or pip, and the name of $log.
quietly() {
	local what=$1
	shift
	"$@" </dev/null >>"$log" 2>&1 && return
	grep -E '^(E|ERROR): ' "$log" | tail -n 1 >&2 || true
	die "$what failed; $log has all of it"
}
