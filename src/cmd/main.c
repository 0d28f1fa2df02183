/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The remora command: a table of subcommands.
 *
 * Place: the top. Nothing is decided here but which command runs.
 *
 * Invariants: SIGPIPE is ignored: a reader that goes away is an error code of write(2).
 *
 * Locking: none.
 */
#include <string.h>

#include "base/cleanup.h"
#include "cmd/cmd.h"
#include "config.h"

static const struct cmd commands[] = {
	{ "serve", "serves resources to others", cmd_serve },
	{ "list", "lists what a server serves", cmd_list },
	{ "info", "tells about a resource", cmd_info },
	{ "copy", "copies a resource to another", cmd_copy },
	{ "verify", "finds, and repairs, what is not what was written", cmd_verify },
	{ "mount", "makes a resource a file", cmd_mount },
	{ "unmount", "ends that, when everything written is safe", cmd_unmount },
	{ "status", "tells what runs here, and how it is", cmd_status },
	{ "pull", "fetches what a mount does not have yet", cmd_pull },
	{ "flush", "makes safe what was written to a mount", cmd_flush },
	{ "invalidate", "fetches anew what changed on the far side", cmd_invalidate },
	{ "log", "tells what happened to a mount or server lately", cmd_log },
	{ "record", "writes down what a mount's users read, for the next time", cmd_record },
	{ "cache", "lists, checks and drops what mount --near has kept", cmd_cache },
	{ "doctor", "tells what this machine can do", cmd_doctor },
	{ "keygen", "makes the keys by which hosts know each other", cmd_keygen },
	{ "link", "emulates a network: delay, rate, stalls, cuts", cmd_link },
	{ "bench", "measures this machine, and Remora on it", cmd_bench },
};

const struct cmd *cmd_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static void help_print(FILE *f)
{
	fprintf(f, "remora: remote resources as memory, files and copies\n\n"
		   "Usage: remora COMMAND [OPTION]... [ARGUMENT]...\n\nCommands:\n");
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].what);
	fprintf(f,
		"\n"
		"  --help and --version; remora COMMAND --help tells about one.\n\n"
		"A resource is named by a spec: a path, memory:64M, remora://HOST:PORT/NAME, with\n"
		"stages in front if need be: \"retry:for=60s|limit:rate=100M|file:disk.img\". See\n"
		"man remora-spec.\n");
}

static int run_command(const struct cmd *cmd, int argc, char **argv)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGPIPE, &ignore, NULL);
	say_name(cmd->name);
	return cmd->run(argc, argv);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;
	const struct cmd *cmd;

	if (!name) {
		help_print(stderr);
		return CMD_USAGE;
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
		if (argc > 2 && (cmd = cmd_find(argv[2]))) {
			char help[] = "--help";
			char *help_argv[] = { argv[2], help, NULL };

			return run_command(cmd, 2, help_argv);
		}
		help_print(stdout);
		return out_end(CMD_OK);
	}
	if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
		printf("remora %s\n", REMORA_VERSION);
		return out_end(CMD_OK);
	}
	cmd = cmd_find(name);
	if (!cmd) {
		fprintf(stderr, "remora: there is no %s '%s'; see remora --help\n",
			*name == '-' ? "option" : "command", name);
		return CMD_USAGE;
	}
	return run_command(cmd, argc - 1, argv + 1);
}
