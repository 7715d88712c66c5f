// Rank candidates with Go's standard library:
//
//	go run score.go URL MODEL REQUEST.json [BUDGET_MS]
//
// The time budget covers connecting, all attempts and the pauses between them. Each attempt sends
// the remaining time as its deadline. A scoring call changes nothing, so it is safe to repeat: after
// a failed connection, after 429, 502 and 503, and after a 500 that is not the service's own. At most
// three retries a call, and one for ten calls in the long run (retryBudget).
package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	mostRetries = 3
	backoff     = 50 * time.Millisecond // doubled for each further retry
)

// One client for the whole process: it reuses connections.
var client = &http.Client{Transport: &http.Transport{
	DialContext: (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext,
}}

// retryBudget limits the retries of a process, so that they do not make an overload worse: a token
// bucket, as in Finagle's RetryBudget. Each call adds a tenth of a token, each retry takes one.
type retryBudget struct {
	sync.Mutex
	ratio, reserve, tokens float64
}

// One for all calls of a process to a service.
var retries = &retryBudget{ratio: 0.1, reserve: 10, tokens: 10}

func (b *retryBudget) addCall() {
	b.Lock()
	defer b.Unlock()
	if b.tokens += b.ratio; b.tokens > b.reserve {
		b.tokens = b.reserve
	}
}

func (b *retryBudget) takeRetry() bool {
	b.Lock()
	defer b.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// score retries if that can help, and returns the last status and body.
func score(ctx context.Context, url string, request []byte) (int, []byte, error) {
	retries.addCall()
	id := requestID()
	for made := 0; ; made++ {
		status, header, body, err := post(ctx, url, request, id)
		if ctx.Err() != nil || (err == nil && !retryable(status, header)) {
			return status, body, err
		}
		wait := pause(header, made)
		end, ok := ctx.Deadline()
		if made == mostRetries || (ok && wait >= time.Until(end)) || !retries.takeRetry() {
			return status, body, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
}

// retryable says whether another attempt may succeed; the service's own 500 would be the same again.
func retryable(status int, header http.Header) bool {
	switch status {
	case http.StatusInternalServerError:
		return header.Get("content-type") != "application/problem+json"
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
		return true
	}
	return false
}

func post(ctx context.Context, url string, request []byte, id string) (int, http.Header, []byte, error) {
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(request))
	if err != nil {
		return 0, nil, nil, err
	}
	call.Header.Set("content-type", "application/json")
	call.Header.Set("x-request-id", id)
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
	answer, err := client.Do(call)
	if err != nil {
		return 0, nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, answer.Header, body, err
}

// requestID is the same for all attempts of a call: the servers' logs have it.
func requestID() string {
	id := make([]byte, 16)
	_, _ = crand.Read(id)
	return hex.EncodeToString(id)
}

// pause is the seconds in Retry-After and up to a quarter more, or a random back-off.
func pause(header http.Header, made int) time.Duration {
	wait := time.Duration(float64(backoff<<made) * (0.5 + rand.Float64()/2))
	seconds, err := strconv.ParseUint(header.Get("retry-after"), 10, 20)
	if err != nil || seconds == 0 {
		return wait
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
