# shellcheck shell=bash
# Shared by launch/tpu/, launch/gpu/ and launch/worker.sh, which source it. Functions only.

fail() {
  echo "error: $1" >&2
  exit 2
}

# parse "NAME ..." ARGUMENT... : --NAME=VALUE sets the variable NAME, --dry_run the variable dry_run,
# and what follows -- is the array command.
parse() {
  local known=" $1 " flag
  shift
  dry_run='' command=()
  while [ $# -gt 0 ]; do
    flag=${1#--} flag=${flag%%=*}
    case $1 in
      --) shift && command=("$@") && return ;;
      --dry_run) dry_run=1 ;;
      --?*=*)
        [[ $known == *" $flag "* ]] ||
          fail "unknown flag --$flag: $0; known:${known% } dry_run"
        printf -v "$flag" %s "${1#*=}"
        ;;
      *) fail "unknown argument $1: $0; give --flag=value, and commands to run behind --" ;;
    esac
    shift
  done
}

# need NAME... : fails unless each of these variables has a value.
need() {
  local variable
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || fail "a flag is missing: --$variable; see the first lines of $0"
  done
}

need_command() {
  [ ${#command[@]} -gt 0 ] || fail "no command to run: $0; give it behind --, as '-- python launch/train.py ...'"
}

# Prints words so that a shell reads the same words again.
quote() {
  local word line='' mark=\' escaped="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//$mark/$escaped}'"
    line+=" $word"
  done
  echo "${line# }"
}

# Runs a command; with --dry_run prints it.
run() {
  if [ -n "$dry_run" ]; then
    quote "$@"
  else
    "$@"
  fi
}
