/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runtime directory: where control sockets are, and who may have made it.
 *
 * Place: both sides of the control socket ask here, so that they look in the same place.
 *
 * Invariant: what is returned belongs to this user, and nobody else can put a socket there.
 *
 * Locking: none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/control.h"

static int dir_name(char *ret, size_t len, bool *ret_given, struct err *e)
{
	const char *given = getenv("REMORA_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	unsigned uid = (unsigned)geteuid();
	int n;

	*ret_given = given && *given;
	if (*ret_given)
		n = snprintf(ret, len, "%s", given);
	else if (!uid)
		n = snprintf(ret, len, "/run/remora");
	else if (xdg && *xdg == '/')
		n = snprintf(ret, len, "%s/remora", xdg);
	else
		n = snprintf(ret, len, "/tmp/remora-%u", uid);
	if (n < 0 || (size_t)n >= len)
		return err_set(e, -ENAMETOOLONG,
			       "the runtime directory's path is too long: set REMORA_RUNTIME_DIR "
			       "to a shorter one");
	return 0;
}

int control_dir(char *ret, size_t len, bool make, struct err *e)
{
	struct stat st;
	bool given;
	int r = dir_name(ret, len, &given, e);

	if (r)
		return r;
	if (make && mkdir(ret, 0700) && errno != EEXIST)
		return err_sys(e, -errno,
			       "making the runtime directory %s (REMORA_RUNTIME_DIR names "
			       "another)",
			       ret);
	/* A link in place of our own name is somebody's trap; one that the user gave is his. */
	if (given ? stat(ret, &st) : lstat(ret, &st))
		return err_sys(e, -errno, "the runtime directory %s", ret);
	if (!S_ISDIR(st.st_mode))
		return err_set(e, -ENOTDIR, "the runtime directory %s is no directory", ret);
	if (st.st_uid != geteuid())
		return err_set(e, -EPERM,
			       "the runtime directory %s belongs to user %u: set "
			       "REMORA_RUNTIME_DIR to one of your own",
			       ret, (unsigned)st.st_uid);
	if (st.st_mode & 022)
		return err_set(e, -EPERM,
			       "others may write to the runtime directory %s: chmod 700 %s, or set "
			       "REMORA_RUNTIME_DIR to another",
			       ret, ret);
	return 0;
}
