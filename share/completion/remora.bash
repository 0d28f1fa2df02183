# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Completion of remora for bash. What there is to complete is asked of the command itself: commands of `remora --help`,
# options and arguments of `remora COMMAND --help`, names of resources of `remora list`, targets of `remora status`. So
# there is no second list here that could be wrong. Needs nothing of the bash-completion package.

# The words before the cursor, as the shell will see them, in `words`; the last one is being completed. Bash's own COMP_WORDS
# are cut at : and =, which are part of a spec.
_remora_split() { # TEXT
	local text=$1 word='' quote='' c i open=0
	words=()
	for ((i = 0; i < ${#text}; i++)); do
		c=${text:i:1}
		if [[ $quote ]]; then
			if [[ $c == "$quote" ]]; then quote=''; else word+=$c; fi
		elif [[ $c == [\'\"] ]]; then
			quote=$c open=1
		elif [[ $c == \\ ]]; then
			i=$((i + 1)) open=1
			word+=${text:i:1}
		elif [[ $c == [[:space:]] ]]; then
			[[ $word || $open == 1 ]] && words+=("$word")
			word='' open=0
		else
			word+=$c
		fi
	done
	words+=("$word")
	quoted=$quote
}

# The help of a command ('' = of remora), asked for once in a shell.
_remora_help() { # COMMAND
	local key=${1:-.}
	declare -gA _remora_texts
	[[ ${_remora_texts[$key]+x} ]] ||
		_remora_texts[$key]=$(COLUMNS=100 timeout 5 "$remora" ${1:+"$1"} --help 2>/dev/null </dev/null)
	text=${_remora_texts[$key]}
}

_remora_commands() {
	local text line in=0
	_remora_help ''
	while IFS= read -r line; do
		if [[ $line == Commands: ]]; then
			in=1
		elif [[ $in == 1 && $line =~ ^\ \ ([a-z][a-z-]*)\  ]]; then
			printf '%s\n' "${BASH_REMATCH[1]}"
		elif [[ $in == 1 && ! $line ]]; then
			break
		fi
	done <<<"$text"
}

# The options of a command and what their values are called: "--listen ADDR", "-l ADDR", "--json ".
_remora_options() { # COMMAND
	local text line
	_remora_help "$1"
	while IFS= read -r line; do
		[[ $line =~ ^\ \ (-([a-zA-Z]),|\ \ \ )\ --([a-z0-9-]+)(\ ([^ ]+))?($|\ ) ]] || continue
		printf '%s %s\n' "--${BASH_REMATCH[3]}" "${BASH_REMATCH[5]}"
		[[ ! ${BASH_REMATCH[2]} ]] || printf '%s %s\n' "-${BASH_REMATCH[2]}" "${BASH_REMATCH[5]}"
	done <<<"$text"
}

# What the arguments are called, one a line: "[NAME=]SPEC...".
_remora_arguments() { # COMMAND
	local text word skip=0
	_remora_help "$1"
	[[ $text =~ Usage:\ remora\ $1([^$'\n']*) ]] || return
	for word in ${BASH_REMATCH[1]}; do
		if [[ $word == *OPTION* ]]; then continue; fi
		if [[ $word == -* ]]; then skip=1; continue; fi
		if [[ $skip == 1 ]]; then skip=0; continue; fi
		printf '%s\n' "$word"
	done
}

# Adds to the answers; the kinds of ends that want no space behind them tell so.
_remora_reply() { # WORD...
	local word
	for word; do
		[[ $word != *[/:=\|] ]] || compopt -o nospace 2>/dev/null
		COMPREPLY+=("$word")
	done
}

# Whatever begins with $cur, one a line on stdin.
_remora_match() {
	local word
	while IFS= read -r word; do
		[[ $word && $word == "$cur"* ]] && _remora_reply "$word"
	done
}

_remora_files() { # BEFORE PATH [d | s BEHIND]: of files and directories; directories; sockets and directories
	local path
	compopt -o filenames 2>/dev/null
	while IFS= read -r path; do
		if [[ -d $path ]]; then
			_remora_reply "$1$path/"
		elif [[ ${3-} == s && -S $path ]]; then
			_remora_reply "$1$path$4"
		elif [[ ! ${3-} ]]; then
			_remora_reply "$1$path"
		fi
	done < <(compgen -f -- "$2")
}

# The names that the server at ADDR serves.
_remora_names() { # ADDR BEFORE
	timeout 3 "$remora" list --json --timeout 2s "$1" 2>/dev/null </dev/null |
		sed -n 's/.*"name": *"\([^"\\]*\)".*/\1/p' | sed "s|^|${2//[|&\\]/\\&}|"
}

# An address, and with a spec's scheme in front the resource behind it.
_remora_unix() { # SCHEME REST BEHIND
	local path=$2
	while [[ $path == */* ]]; do
		path=${path%/*}
		if [[ $3 && -S $path ]]; then
			_remora_match < <(_remora_names "unix:$path" "$1$path/")
			return
		fi
	done
	_remora_files "$1" "$2" s "$3"
}

_remora_address() {
	case $cur in
	unix:*) _remora_unix unix: "${cur#unix:}" '' ;;
	remora+unix://*) _remora_unix remora+unix:// "${cur#remora+unix://}" '' ;;
	*) _remora_match <<<$'unix:\nremora://\nremora+unix://\n127.0.0.1:\n' ;;
	esac
}

# A spec: its last part, behind the stages.
_remora_spec() {
	local before='' i
	if [[ $cur == *\|* ]]; then
		before=${cur%"${cur##*|}"}
		cur=${cur##*|}
	elif [[ $argument == *NAME=* && $cur == [a-zA-Z0-9._-]*=* ]]; then
		before=${cur%%=*}=
		cur=${cur#*=}
	fi
	case $cur in
	remora+unix://*) _remora_unix remora+unix:// "${cur#remora+unix://}" / ;;
	remora://*/*) _remora_match < <(_remora_names "${cur%/*}" "${cur%/*}/") ;;
	remora://*) ;;
	file:*) _remora_files file: "${cur#file:}" ;;
	*)
		_remora_files '' "$cur"
		[[ ! $cur ]] || _remora_match <<<$'remora://\nremora+unix://\nfile:\nmemory:\npattern:\n'
		;;
	esac
	for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=$before${COMPREPLY[i]}; done
}

# Mounts and servers that run here.
_remora_target() {
	_remora_match < <(timeout 3 "$remora" status --json 2>/dev/null </dev/null |
		grep -o '"target": *"[^"\\]*"' | sed 's/.*: *"\(.*\)"/\1/' | sort -u)
	[[ ${#COMPREPLY[@]} -gt 0 ]] || _remora_files '' "$cur"
}

# A value, by what help calls it.
_remora_value() { # WHAT
	local argument=$1 what=$1
	what=${what//[].[]/}
	what=${what#NAME=}
	case $what in
	*\|*) _remora_match < <(tr '|' '\n' <<<"$what" | sed -n 's/^\([a-z0-9_=-][a-z0-9_=-]*\).*/\1/p') ;;
	SPEC | SRC | DST) _remora_spec ;;
	ADDR | unix:PATH) _remora_address ;;
	TARGET) _remora_target ;;
	DIR | DIRECTORY) _remora_files '' "$cur" d ;;
	FILE | PATH | PROFILE) _remora_files '' "$cur" ;;
	esac
}

# Which argument of the command it is, and what that is called.
_remora_argument() { # COMMAND
	local n=0 i word options last='' what
	options=$'\n'$(_remora_options "$1")
	for ((i = 2; i < ${#words[@]} - 1; i++)); do
		word=${words[i]}
		if [[ $word == -* && $word != *=* ]]; then
			[[ $options != *$'\n'"$word "[!$'\n']* ]] || i=$((i + 1))
		elif [[ $word != -* ]]; then
			n=$((n + 1))
		fi
	done
	while IFS= read -r what; do
		last=$what
		if [[ $n == 0 ]]; then
			_remora_value "$what"
			return
		fi
		n=$((n - 1))
	done < <(_remora_arguments "$1")
	[[ $last != *... ]] || _remora_value "$last"
}

_remora() {
	local remora=$1 cur quoted option what cut i
	local -a words
	COMPREPLY=()
	_remora_split "${COMP_LINE:0:COMP_POINT}"
	cur=${words[${#words[@]} - 1]}
	option=''
	[[ ${#words[@]} -le 2 ]] || option=${words[${#words[@]} - 2]}
	cut=$cur
	if [[ ${#words[@]} -le 2 ]]; then
		_remora_match < <(_remora_commands; printf -- '--help\n--version\n')
	elif [[ ${words[1]} == help ]]; then
		_remora_match < <(_remora_commands)
	elif [[ $cur == --*=* ]]; then
		option=${cur%%=*}
		cur=${cur#*=}
		what=$(_remora_options "${words[1]}" | sed -n "s/^$option //p")
		[[ ! $what ]] || _remora_value "$what"
		for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=$option=${COMPREPLY[i]}; done
	elif [[ $option == -* && $option != *=* ]] &&
		what=$(_remora_options "${words[1]}" | sed -n "s/^$option //p") && [[ $what ]]; then
		_remora_value "$what"
	elif [[ $cur == -* ]]; then
		_remora_match < <(_remora_options "${words[1]}" | sed -n 's/^\(--[^ ]*\) .*/\1/p')
	else
		_remora_argument "${words[1]}"
	fi
	# Readline replaces only what is behind the last : or =, unless a quote is open.
	[[ ! $quoted && $cut == *[:=]* ]] || return 0
	cut=${cut%"${cut##*[:=]}"}
	for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$cut"}; done
}

complete -F _remora remora
