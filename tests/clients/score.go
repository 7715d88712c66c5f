// Rank candidates with Go's standard library:
//
//	go run score.go URL MODEL REQUEST.json [BUDGET_MS]
//
// The budget covers connecting, all attempts and the pauses between them. Each attempt sends the
// remaining budget as its deadline. If the server is busy (429 or 503), the client retries after
// the seconds in Retry-After plus a random delay, if that is within the budget. A scoring call
// changes nothing, so it is safe to repeat.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"time"
)

// score retries while the server is busy, and returns the last status and body.
func score(ctx context.Context, url string, request []byte) (int, []byte, error) {
	for {
		status, header, body, err := post(ctx, url, request)
		if err != nil || (status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable) {
			return status, body, err
		}
		wait := pause(header)
		if end, ok := ctx.Deadline(); ok && wait >= time.Until(end) {
			return status, body, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
}

func post(ctx context.Context, url string, request []byte) (int, http.Header, []byte, error) {
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request))
	if err != nil {
		return 0, nil, nil, err
	}
	call.Header.Set("content-type", "application/json")
	if end, ok := ctx.Deadline(); ok {
		left := time.Until(end).Milliseconds()
		if left < 1 {
			left = 1
		}
		call.Header.Set("x-request-timeout-ms", strconv.FormatInt(left, 10))
	}
	if key := os.Getenv("GATEHOUSE_KEY"); key != "" {
		call.Header.Set("authorization", "Bearer "+key)
	}
	answer, err := http.DefaultClient.Do(call) // keeps connections
	if err != nil {
		return 0, nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, answer.Header, body, err
}

func pause(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("retry-after"), 10, 20)
	if err != nil {
		seconds = 1
	}
	return time.Duration(float64(seconds) * (1 + rand.Float64()/4) * float64(time.Second))
}

func main() {
	rand.Seed(time.Now().UnixNano())
	budget := 1000
	request, err := os.ReadFile(os.Args[3])
	if err == nil && len(os.Args) > 4 {
		budget, err = strconv.Atoi(os.Args[4])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(budget)*time.Millisecond)
	defer cancel()
	status, body, err := score(ctx, os.Args[1]+"/v1/models/"+os.Args[2]+"/score", request)
	if err != nil {
		fmt.Fprintln(os.Stderr, "no answer:", err)
		os.Exit(1)
	}
	if status != http.StatusOK {
		fmt.Fprintln(os.Stderr, status, string(body))
		os.Exit(1)
	}
	fmt.Println(string(body))
}
