#!/bin/sh
# Rank candidates with curl, 7.84 or later:
#
#     sh score.sh URL MODEL REQUEST.json [BUDGET_MS]
#
# The budget, rounded up to whole seconds, covers connecting, all attempts and the pauses between
# them. Each attempt sends the remaining budget as its deadline. If the server is busy (429 or 503),
# the script retries after the seconds in Retry-After if they are within the budget. (curl's own --retry
# would also repeat timeouts, and print the response of every attempt.) The key comes from
# GATEHOUSE_KEY and reaches curl through a pipe, because all users of a machine can see arguments.
set -eu

url=$1 model=$2 request=$3 budget_ms=${4:-1000}
end=$(($(date +%s) + (budget_ms + 999) / 1000))
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

while :; do
	left_s=$((end - $(date +%s)))
	[ "$left_s" -gt 0 ] || left_s=1
	said=$(
		printf '%s\n' "${GATEHOUSE_KEY:+header = \"authorization: Bearer $GATEHOUSE_KEY\"}" |
			curl --config - --silent --show-error --max-time "$left_s" \
				--header 'content-type: application/json' \
				--header "x-request-timeout-ms: ${left_s}000" \
				--data-binary "@$request" \
				--output "$answer" --write-out '%{http_code} %header{retry-after}' \
				"$url/v1/models/$model/score"
	)
	status=${said%% *} pause_s=${said#* }
	case $status in
	200) break ;;
	429 | 503) [ "${pause_s:=1}" -lt "$left_s" ] || break ;;
	*) break ;;
	esac
	sleep "$pause_s"
done

if [ "$status" = 200 ]; then
	cat "$answer"
else
	echo "$status $(cat "$answer")" >&2
	exit 1
fi
