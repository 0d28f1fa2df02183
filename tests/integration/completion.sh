#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Completion: bash's function is called as readline calls it, without a terminal. zsh's is driven in a terminal of its own,
# where zsh is installed.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
share=$(cd "$(dirname "$0")/../../share/completion" && pwd)

# What bash offers behind this line, one a line, in `stdout`.
offers() { # LINE
	bash --norc -c '
		source "$1"
		COMP_LINE=$3 COMP_POINT=${#3} COMP_WORDS=($3) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
		_remora "$2"
		[ ${#COMPREPLY[@]} = 0 ] || printf "%s\n" "${COMPREPLY[@]}"
	' - "$share/remora.bash" "$REMORA" "$1" 2>complete.err | sort >stdout
	[ ! -s complete.err ] || { cat complete.err; return 1; }
}

# Exactly that.
gives() { # LINE WORD...
	local line=$1
	shift
	offers "$line"
	is "$(cat stdout)" "$( (($# == 0)) || printf '%s\n' "$@" | sort)" "'$line'"
}

case_every_command_is_known() {
	local name
	"$REMORA" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' >names
	less 5 "$(wc -l <names)"
	offers 'remora '
	same <({ cat names; printf '%s\n' --help --version; } | sort) stdout
	offers 'remora help '
	same <(sort names) stdout
	while read -r name; do
		offers "remora $name"
		same <(grep "^$name" names | sort) stdout
	done <names
}

case_every_option_of_every_command_is_known() {
	local name
	"$REMORA" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' >names
	while read -r name; do
		"$REMORA" "$name" --help | sed -n 's/^  \(-., \|    \)\(--[a-z0-9-]*\).*/\2/p' | sort >options
		holds options --help
		offers "remora $name --"
		same options stdout
	done <names
}

case_options_and_their_values() {
	gives 'remora serve --no-' --no-list --no-sandbox
	gives 'remora copy --progress ' auto json none
	gives 'remora copy a --progress j' json
	gives 'remora copy --progress=j' json
	gives 'remora list --loop e' epoll
	gives 'remora nonsense --'
}

case_arguments_are_specs() {
	mkdir d 'with space'
	: >file.img >d/inner >'with space/x'
	gives 'remora info f' file.img file:
	gives 'remora info d/' d/inner
	gives 'remora info ./f' ./file.img
	gives 'remora info with\ space/' 'with space/x'
	gives 'remora info rem' remora:// remora+unix://
	gives 'remora info file:f' file.img
	gives 'remora info "retry|f' 'retry|file.img' 'retry|file:'
	gives 'remora copy file.img d/' d/inner
	gives 'remora copy -j 5 file.img d/' d/inner
	gives 'remora copy file.img d/inner d'
	gives 'remora serve a=memory:1M b=d/i' d/inner
	gives 'remora serve file.img --read-only d/i' d/inner
}

case_sockets_and_the_resources_behind_them() {
	mkdir sub
	serve s alpha=memory:1M beta=memory:1M
	gives 'remora serve --listen u' unix:
	gives 'remora list uni' unix:
	gives "remora list unix:$dir/s" "$dir/s.sock" "$dir/sub/"
	gives "remora info remora+unix://$dir/s" "//$dir/s.sock/" "//$dir/sub/"
	gives "remora info remora+unix://$dir/s.sock/" "//$dir/s.sock/alpha" "//$dir/s.sock/beta"
	gives "remora info 'remora+unix://$dir/s.sock/b" "remora+unix://$dir/s.sock/beta"
	gives "remora copy remora+unix://$dir/s.sock/a" "//$dir/s.sock/alpha"
	gives "remora info remora+unix://$dir/none.sock/"
}

case_targets_are_what_runs() {
	serve s a=memory:1M
	serve t a=memory:1M
	gives 'remora status ' "unix:$dir/s.sock" "unix:$dir/t.sock"
	gives "remora flush unix:$dir/t" "$dir/t.sock"
	gives "remora log --last 5 'unix:$dir/s" "unix:$dir/s.sock"
	gives "remora pull unix:$dir/s.sock a" all
}

# Types a line and TAB into a zsh in a terminal, until it shows that.
zsh_shows() { # LINE TEXT
	mkdir -p zsh
	cat >zsh/.zshrc <<-END
		fpath=($share \$fpath)
		autoload -U compinit && compinit -u -d $dir/zsh/dump
		path=($(dirname "$REMORA") \$path)
		PS1='ready> ' LISTMAX=1000
		unsetopt auto_menu zle_bracketed_paste
	END
	timeout 60 python3 - "$dir/zsh" "$1" "$2" <<-'END'
		import os, pty, select, sys
		home, line, want = sys.argv[1:]
		pid, fd = pty.fork()
		if pid == 0:
		    os.environ.update(ZDOTDIR=home, TERM="xterm", COLUMNS="200")
		    os.execvp("zsh", ["zsh", "-i"])
		def until(text):
		    got = ""
		    while text not in got:
		        if not select.select([fd], [], [], 25)[0]:
		            print("no %r in %r" % (text, got))
		            return False
		        got += os.read(fd, 65536).decode(errors="replace")
		    return True
		ok = until("ready> ")
		os.write(fd, line.encode() + b"\t\t")
		ok = ok and until(want)
		os.kill(pid, 9)
		os.waitpid(pid, 0)
		sys.exit(not ok)
	END
}

case_zsh_offers_the_same() {
	command -v zsh >/dev/null && command -v python3 >/dev/null || skip "zsh is not installed"
	zsh -n "$share/_remora"
	zsh_shows 'remora ' 'copies a resource to another'
	zsh_shows 'remora copy --prog' --progress
	zsh_shows 'remora list --loop io' io_uring
	: >some.img
	zsh_shows 'remora info so' some.img
	serve s alpha=memory:1M beta=memory:1M
	zsh_shows "remora info remora+unix://$dir/s.sock/al" sock/alpha
}

run_cases
