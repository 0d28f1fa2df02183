/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remora list: what a server serves.
 *
 * Place: options and output around remora_list() of the protocol's client.
 *
 * Locking: none.
 */
#include <errno.h>
#include <getopt.h>
#include <string.h>

#include "back/remora.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cmd/cmd.h"
#include "store/spec.h"

/* ADDR, or the spec of a resource, whose name does not matter here. */
static int address_parse(const char *text, struct remora_options *ret, struct err *e)
{
	CLEANUP(spec_done) struct spec spec = { 0 };
	static const char local[] = "remora+unix://";
	char addr[SPEC_LEN_MAX + 8];
	int r;

	remora_options_init(ret);
	if (!strncmp(text, local, strlen(local)))
		snprintf(addr, sizeof(addr), "unix:%s", text + strlen(local));
	else if (!strncmp(text, "remora", 6) && strstr(text, "://"))
		addr[0] = '\0';
	else
		snprintf(addr, sizeof(addr), "%s", text);
	if (addr[0])
		return sock_parse(addr, &ret->addr, e);
	r = spec_parse(text, &spec, e);
	return r ? r : remora_options_parse(&spec, ret, e);
}

static void list_print(const struct remora_entry *entry, size_t count)
{
	char size[SIZE_TEXT_MAX];
	int name_len = (int)strlen("NAME");

	for (size_t i = 0; i < count; i++)
		name_len = MAX(name_len, (int)strlen(entry[i].name));
	name_len = MIN(name_len, 60);
	if (count)
		printf("%s%-*s  %10s  ACCESS%s\n", out_color(stdout, OUT_BOLD), name_len, "NAME",
		       "SIZE", out_color(stdout, OUT_PLAIN));
	for (size_t i = 0; i < count; i++)
		printf("%-*s  %10s  %s\n", name_len, *entry[i].name ? entry[i].name : "(no name)",
		       size_format(entry[i].size, size),
		       entry[i].read_only ? "read" : "read, write");
	if (!count)
		printf("The server has no resources, or does not tell their names.\n");
}

static void list_json(const struct remora_entry *entry, size_t count)
{
	json_t *all = json_array();

	for (size_t i = 0; i < count; i++)
		json_array_append_new(all, json_pack("{s:s, s:I, s:b}", "name", entry[i].name,
						     "size", (json_int_t)entry[i].size, "read_only",
						     entry[i].read_only));
	out_json(json_pack("{s:o}", "resources", all));
}

int cmd_list(int argc, char **argv)
{
	AUTO_FREE struct remora_entry *entry = NULL;
	uint64_t timeout_ns = REMORA_CONNECT_DEFAULT_NS;
	const struct opt options[] = {
		{ "timeout", 0, OPT_TIME, "TIME", "how long it waits for the server; default: 10s",
		  &timeout_ns },
		{ 0 },
	};
	const struct usage usage = {
		.name = "list",
		.args = "[OPTION]... ADDR",
		.options = options,
		.more = "ADDR is HOST:PORT, unix:PATH, or the spec of a resource there: remora://HOST:PORT,\n"
			"remoras://HOST:PORT?ca=FILE&cert=FILE&key=FILE, remora+unix:///PATH.\n"
			"\n"
			"Example:\n"
			"  remora list unix:/run/remora.sock\n",
		.args_min = 1,
		.args_max = 1,
		.json = true,
		.loop = true,
	};
	struct common common;
	struct remora_options from;
	struct err e = { 0 };
	struct run run;
	size_t count = 0;
	int r = options_parse(&usage, &common, argc, argv);

	if (r >= 0)
		return r;
	r = address_parse(argv[optind], &from, &e);
	if (!r)
		r = run_open(&run, &common, &e);
	if (r) {
		tls_unref(from.tls);
		return say_failed(&e, NULL);
	}
	from.connect_ns = timeout_ns;
	r = remora_list(run.loop, &from, &entry, &count, &e);
	run_close(&run);
	tls_unref(from.tls);
	if (r)
		return say_failed(&e, r == -EACCES ? NULL : "is a remora serve running there?");
	if (common.json)
		list_json(entry, count);
	else
		list_print(entry, count);
	return out_end(CMD_OK);
}
