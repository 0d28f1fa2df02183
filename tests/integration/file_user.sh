#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An ordinary user, without any capability, does with a file what root does: mount, use, look at it, unmount; and has memory, which
# system calls take.
export TMPDIR=/tmp # where another user can get to
. "$(dirname "$0")/lib.sh"

user=65534

# Where users may not open /dev/fuse, as udev lets them, root gives them one in a mount name space of the tests' own.
if [ "$(id -u)" = 0 ] && [ "$(stat -c %a /dev/fuse)" != 666 ] && [ -z "${REMORA_OWN_FUSE-}" ]; then
	export REMORA_OWN_FUSE=yes
	exec unshare --mount --propagation private bash "$0" "$@"
fi
if [ -n "${REMORA_OWN_FUSE-}" ]; then
	node=$(mktemp -u /tmp/remora-fuse.XXXXXX)
	mknod -m 666 "$node" c 10 229 && mount --bind "$node" /dev/fuse
	rm -f "$node"
fi

# Runs a command as the user; root's, when the tests are root's.
as_user=()
if [ "$(id -u)" = 0 ]; then
	as_user=(setpriv --reuid=$user --regid=$user --clear-groups --inh-caps=-all)
fi

# A directory of the user's, and copies of the programs: the build's directory may be root's alone.
user_begins() {
	command -v fusermount3 >/dev/null || skip "no fusermount3"
	chmod 711 "$root"
	mkdir bin
	cp "$REMORA" bin/remora
	cp "$MAPPER" bin/mapper
	cp "$EXERCISE" bin/exercise
	cp -L "$(ldd "$MAPPER" | sed -n 's/.*=> \(.*libremora[^ ]*\) .*/\1/p')" bin/
	REMORA=$dir/bin/remora MAPPER=$dir/bin/mapper EXERCISE=$dir/bin/exercise
	export LD_LIBRARY_PATH=$dir/bin
	chmod 755 . bin
	[ ${#as_user[@]} = 0 ] || chown -R $user:$user .
	if [ "$("${as_user[@]}" grep CapEff /proc/self/status | tr -d '\t')" != CapEff:0000000000000000 ]; then
		skip "no way to give capabilities away"
	fi
	# What the library commands below start is the user's from here on.
	REMORA_OF_ALL=$REMORA
	printf '#!/bin/bash\nexec %s "%s" "$@"\n' "${as_user[*]}" "$REMORA_OF_ALL" >bin/as_user
	chmod 755 bin/as_user
	REMORA=$dir/bin/as_user
}

user_file() { # NAME BYTES
	random_file "$1" "$2"
	[ ${#as_user[@]} = 0 ] || chown $user:$user "$1"
}

user_mapper() { # NAME
	printf '#!/bin/bash\nexec %s "%s" "$@"\n' "${as_user[*]}" "$MAPPER" >bin/mapper_as_user
	chmod 755 bin/mapper_as_user
	MAPPER=$dir/bin/mapper_as_user mapper "$1"
}

case_a_user_mounts_reads_writes_and_unmounts() {
	user_begins
	user_file far 4M
	cp far model
	serve s far
	mount_file m "$(at s)" f
	"${as_user[@]}" cmp f far
	printf 'a user was here' >text
	dd if=text of=model bs=1 seek=100001 conv=notrunc status=none
	"${as_user[@]}" dd if=text of=f bs=15 count=1 seek=100001 oflag=seek_bytes conv=notrunc,fsync status=none
	exits 0 "$REMORA" flush "$dir/f"
	same far model
	exits 0 "$REMORA" status "$dir/f"
	holds stdout "$dir/f"
	unmount_file m f
	same far model
	no_control_socket
}

case_a_user_exercises_a_file() {
	user_begins
	user_file far 4M
	cp far from
	serve s far
	mount_file m "$(at s)" f
	"${as_user[@]}" timeout 100 "$EXERCISE" --file f --direct --size 4M --seed 65534 --seconds 2 --processes 3 --from from \
		--model model
	unmount_file m f
	same far model
}

case_a_signal_unmounts_for_a_user_too() {
	user_begins
	user_file far 1M
	cp far model
	serve s far
	mount_file m "$(at s)" f
	printf x | dd of=model bs=1 seek=5 conv=notrunc status=none
	printf x | "${as_user[@]}" dd of=f bs=1 seek=5 conv=notrunc status=none
	stop m
	is "$status_of" 0 "exit status"
	nothing_mounted
	same far model
}

case_what_a_user_mounts_is_his_alone() {
	[ "$(id -u)" = 0 ] || skip "only root can be two users"
	user_begins
	user_file far 1M
	serve s far
	mount_file m "$(at s)" f
	! setpriv --reuid=65533 --regid=65533 --clear-groups cat f >/dev/null 2>err
	holds err "Permission denied"
	! setpriv --reuid=65533 --regid=65533 --clear-groups "$REMORA_OF_ALL" unmount "$dir/f" >out 2>&1
	unmount_file m f
}

case_a_user_has_memory_and_system_calls_take_it() {
	user_begins
	user_file far 4M
	cp far model
	chmod 666 model
	serve s far
	user_mapper m
	ask m "open $(at s)" >answer
	holds answer "ok 4194304"
	# From a region that nobody has touched.
	user_file out 0
	asks m "write 0 4M $dir/out" "ok"
	same out far
	asks m "fill 100001 300000 7 $dir/model" "ok"
	asks m "flush" "ok"
	same far model
	asks m "same 0 4M $dir/model" "ok same"
	asks m "close" "ok"
	nothing_mounted
}

run_cases
