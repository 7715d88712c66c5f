#!/bin/sh
# Rank candidates with curl, 7.84 or later:
#
#     sh score.sh URL MODEL REQUEST.json [BUDGET_MS]
#
# The time budget, rounded up to whole seconds, covers connecting, all attempts and the pauses between
# them. Each attempt sends the remaining time as its deadline. After a failed connection, after 429,
# 502 and 503, and after a 500 that is not the service's own, the script tries again, at most three
# times, if the pause fits into the budget. (curl's own --retry would also repeat timeouts, and print the response of every attempt.) The key
# comes from GATEHOUSE_KEY and reaches curl through a pipe, because all users of a machine can see
# arguments.
set -eu

url=$1 model=$2 request=$3 budget_ms=${4:-1000}
end=$(($(date +%s) + (budget_ms + 999) / 1000))
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
retries=0

while :; do
	left_s=$((end - $(date +%s)))
	[ "$left_s" -gt 0 ] || left_s=1
	code=0
	said=$(
		printf '%s\n' "${GATEHOUSE_KEY:+header = \"authorization: Bearer $GATEHOUSE_KEY\"}" |
			curl --config - --silent --show-error --max-time "$left_s" \
				--header 'content-type: application/json' \
				--header "x-request-timeout-ms: ${left_s}000" \
				--header "x-request-id: $id" \
				--data-binary "@$request" \
				--output "$answer" --write-out '%{http_code} %header{retry-after} %{content_type}' \
				"$url/v1/models/$model/score"
	) || code=$?
	status=${said%% *} said=${said#* }
	after_s=${said%% *} type=${said#* }
	case $code/$status/$type in
	0/500/application/problem+json) break ;;
	0/429/* | 0/500/* | 0/502/* | 0/503/*) ;;
	7/* | 52/* | 55/* | 56/*) ;; # refused; no response; reset while sending or receiving
	*) break ;;
	esac
	# From 25 to 50 ms, doubled for each further retry; or Retry-After and up to a quarter more.
	random=$(($(od -An -N2 -tu2 /dev/urandom)))
	pause_ms=$(((25 + 25 * random / 65536) << retries))
	case $after_s in
	'' | 0 | *[!0-9]*) ;;
	*) pause_ms=$((after_s * (1000 + 250 * random / 65536))) ;;
	esac
	[ "$retries" -lt 3 ] && [ "$pause_ms" -lt "${left_s}000" ] || break
	retries=$((retries + 1))
	sleep "$((pause_ms / 1000)).$(printf %03d $((pause_ms % 1000)))"
done

if [ "$code" != 0 ]; then
	exit "$code"
elif [ "$status" = 200 ]; then
	cat "$answer"
else
	echo "$status $(cat "$answer")" >&2
	exit 1
fi
