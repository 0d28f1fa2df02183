#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# mount.remora and umount.fuse.remora, as mount(8) and umount(8) call them: by hand, and by the real mount(8) with an fstab,
# in a mount namespace of its own where they are in /sbin.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
: "${MOUNT_HELPER:?mount.remora}" "${UMOUNT_HELPER:?umount.fuse.remora}"
export REMORA_COMMAND=$REMORA

# What it would run: the command is replaced by one that prints its arguments.
says() { # ARGUMENTS WANTED
	cat >echoing <<-END
		#!/bin/sh
		[ "\$2" != --help ] || exec "$REMORA" mount --help
		echo "\$*"
	END
	chmod +x echoing
	# shellcheck disable=SC2086
	is "$(REMORA_COMMAND=$dir/echoing sh "$MOUNT_HELPER" $1)" "$2" "$1"
}

# The mounts that went to the background are ended with the case, whatever came of it.
background_note() {
	find "$REMORA_RUNTIME_DIR" -name 'mount-*.sock' 2>/dev/null | sed 's/.*mount-\([0-9]*\).sock/\1/' >>mounts
}

case_options_become_those_of_the_command() {
	says 'S F' 'mount -- S F'
	says 'S F -o rw' 'mount -- S F'
	says 'S F -o ro,budget=1G,pull=none' 'mount --read-only --budget=1G --pull=none -- S F'
	says 'S F -o pull=none,pull=first=64M,direct' 'mount --pull=none --pull=first=64M --direct -- S F'
	says 'S F -v -n -o allow_other,near=/var/tmp -o on-loss=error' \
		'mount --allow-other --near=/var/tmp --on-loss=error --verbose -- S F'
	says 'S F -o defaults,_netdev,noauto,user,nofail,x-systemd.requires=a.service,noatime,nosuid,nodev' 'mount -- S F'
	says 'S F -s -o whatever,ro -t remora' 'mount --read-only -- S F'
	says 'S F -f -o ro' ''
	says '-dash F' 'mount -- -dash F'
}

case_unknown_options_are_refused_by_name() {
	for o in nonsense nonsense=5 budget=1G,uid=7 foreground ready-fd=3 remount 'bud.*=5'; do
		exits 1 sh "$MOUNT_HELPER" S F -o "$o"
		holds stderr "${o##*,}"
	done
	exits 1 sh "$MOUNT_HELPER" S F -o budget
	holds stderr 'budget needs a value'
	exits 1 sh "$MOUNT_HELPER" S F -o direct=yes
	holds stderr 'direct takes no value'
	exits 1 sh "$MOUNT_HELPER" S
	exits 1 sh "$MOUNT_HELPER" S F more
	exits 1 sh "$MOUNT_HELPER" S F -o budget=lots
}

case_a_mount_by_hand() {
	random_file far 3M
	serve s far
	exits 0 timeout 60 sh "$MOUNT_HELPER" "$(at s far)" "$dir/f" -o pull=none,_netdev
	background_note
	grep -F " $dir/f fuse.remora " /proc/self/mounts
	same f far
	printf hello | dd of=f conv=notrunc status=none
	exits 0 timeout 60 sh "$UMOUNT_HELPER" "$dir/f"
	nothing_mounted
	is "$(head -c 5 far)" hello
	exits 32 timeout 60 sh "$MOUNT_HELPER" "$(at s none)" "$dir/f"
	holds stderr none
}

case_a_dead_mount_is_taken_away() {
	random_file far 1M
	serve s far
	mount_file m "$(at s far)" f
	kill -KILL "${pid_of[m]}"
	finished m
	exits 0 timeout 60 sh "$UMOUNT_HELPER" "$dir/f"
	nothing_mounted
}

# The helpers are in a /sbin of this script's own.
namespace_run() { # SCRIPT: its exit status in rc
	rc=0
	[ "$(id -u)" = 0 ] || skip 'only root can put a helper into /sbin'
	unshare --mount true 2>/dev/null || skip 'no mount namespaces here'
	cat >inside <<-END
		set -eu
		mount -t tmpfs none "$dir/over"
		mkdir "$dir/over/upper" "$dir/over/work"
		mount -t overlay -o "lowerdir=$(readlink -f /sbin),upperdir=$dir/over/upper,workdir=$dir/over/work" none "$(readlink -f /sbin)" ||
			exit 77
		cp "$MOUNT_HELPER" /sbin/mount.remora
		cp "$UMOUNT_HELPER" /sbin/umount.fuse.remora
		chmod 755 /sbin/mount.remora /sbin/umount.fuse.remora
		$1
	END
	mkdir -p over
	timeout 80 unshare --mount sh inside || rc=$?
	background_note
}

case_mount_and_umount_and_fstab() {
	local rc
	random_file far 2M
	cp far copy
	serve s far
	printf '%s %s remora noauto,nofail,_netdev,budget=64M 0 0\n' "$(at s far)" "$dir/f" >fstab
	namespace_run "
		mount -T $dir/fstab $dir/f
		grep -F ' $dir/f fuse.remora ' /proc/self/mounts
		cmp $dir/f $dir/copy
		printf hello | dd of=$dir/f conv=notrunc status=none
		umount $dir/f
		! grep -F ' $dir/f ' /proc/self/mounts
		[ \"\$(head -c 5 $dir/far)\" = hello ]
		! mount -t remora -o nonsense $(at s far) $dir/f
		mount -t remora -o ro,pull=none $(at s far) $dir/f
		! dd if=/dev/zero of=$dir/f bs=1 count=1 conv=notrunc status=none
		umount $dir/f
	"
	[ $rc != 77 ] || skip 'no overlay file system for a /sbin of its own'
	is $rc 0 'mount and umount'
}

run_cases
