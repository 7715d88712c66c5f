// Rank candidates with the JDK's own HTTP client, Java 17 or later:
//
//     java Score.java URL MODEL REQUEST.json [BUDGET_MS]
//
// The time budget covers connecting, all attempts and the pauses between them. Each attempt sends
// the remaining time as its deadline. A scoring call changes nothing, so it is safe to repeat: after
// a failed connection, after 429, 502 and 503, and after a 500 that is not the service's own. At most
// three retries a call, and one for ten calls in the long run (RetryBudget).

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpConnectTimeoutException;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.HttpTimeoutException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;

public final class Score {
    private static final Set<Integer> RETRYABLE = Set.of(429, 502, 503);
    private static final int MOST_RETRIES = 3;
    private static final Duration CONNECT = Duration.ofMillis(500);
    private static final double BACKOFF_MS = 50; // doubled for each further retry
    private static final long MILLIS = 1_000_000; // nanoseconds

    /** One client for the whole process: it reuses connections. HTTP/2 would need TLS. */
    private static final HttpClient CLIENT =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).connectTimeout(CONNECT).build();

    /** One for all calls of a process to a service. */
    private static final RetryBudget RETRIES = new RetryBudget(0.1, 10);

    /**
     * Limits the retries of a process, so that they do not make an overload worse: a token bucket, as
     * in Finagle's RetryBudget. Each call adds a tenth of a token, each retry takes one.
     */
    static final class RetryBudget {
        private final double ratio;
        private final double reserve;
        private double tokens;

        RetryBudget(double ratio, double reserve) {
            this.ratio = ratio;
            this.reserve = reserve;
            this.tokens = reserve;
        }

        synchronized void addCall() {
            tokens = Math.min(tokens + ratio, reserve);
        }

        synchronized boolean takeRetry() {
            if (tokens < 1) {
                return false;
            }
            tokens -= 1;
            return true;
        }
    }

    /** Scores, retries if that can help, and returns the last response. */
    static HttpResponse<String> score(URI url, byte[] request, Duration budget)
            throws IOException, InterruptedException {
        long end = System.nanoTime() + budget.toNanos();
        String id = UUID.randomUUID().toString(); // the same for all attempts: the servers' logs have it
        RETRIES.addCall();
        for (int retries = 0; ; retries++) {
            HttpResponse<String> answer = null;
            IOException lost = null;
            try {
                answer = CLIENT.send(attempt(url, request, id, end), BodyHandlers.ofString());
            } catch (HttpConnectTimeoutException error) {
                lost = error;
            } catch (HttpTimeoutException error) {
                throw error; // no time is left
            } catch (IOException error) {
                lost = error;
            }
            if (answer != null && !isRetryable(answer)) {
                return answer;
            }
            long pauseMs = pauseMs(answer, retries);
            boolean fits = retries < MOST_RETRIES && pauseMs < (end - System.nanoTime()) / MILLIS;
            if (!fits || !RETRIES.takeRetry()) {
                if (lost != null) {
                    throw lost;
                }
                return answer;
            }
            Thread.sleep(pauseMs);
        }
    }

    private static HttpRequest attempt(URI url, byte[] request, String id, long end) {
        long leftMs = Math.max((end - System.nanoTime()) / MILLIS, 1);
        HttpRequest.Builder call = HttpRequest.newBuilder(url)
                .timeout(Duration.ofMillis(leftMs))
                .header("content-type", "application/json")
                .header("x-request-timeout-ms", Long.toString(leftMs))
                .header("x-request-id", id)
                .POST(HttpRequest.BodyPublishers.ofByteArray(request));
        String key = System.getenv("GATEHOUSE_KEY");
        if (key != null) {
            call.header("authorization", "Bearer " + key);
        }
        return call.build();
    }

    /** Whether another attempt may succeed. The service's own 500 would be the same again. */
    private static boolean isRetryable(HttpResponse<?> answer) {
        String type = answer.headers().firstValue("content-type").orElse("");
        return RETRYABLE.contains(answer.statusCode())
                || answer.statusCode() == 500 && !type.equals("application/problem+json");
    }

    /** The seconds in Retry-After and up to a quarter more, or a random back-off. */
    private static long pauseMs(HttpResponse<?> answer, int retries) {
        ThreadLocalRandom random = ThreadLocalRandom.current();
        double backoffMs = BACKOFF_MS * (1 << retries) * random.nextDouble(0.5, 1);
        String stated = answer == null ? "" : answer.headers().firstValue("retry-after").orElse("");
        long seconds = stated.matches("\\d{1,6}") ? Long.parseLong(stated) : 0;
        return (long) Math.max(seconds * 1000 * random.nextDouble(1, 1.25), backoffMs);
    }

    public static void main(String[] told) throws InterruptedException {
        try {
            URI url = URI.create(told[0] + "/v1/models/" + told[1] + "/score");
            byte[] request = Files.readAllBytes(Path.of(told[2]));
            Duration budget = Duration.ofMillis(told.length > 3 ? Long.parseLong(told[3]) : 1000);
            HttpResponse<String> answer = score(url, request, budget);
            if (answer.statusCode() == 200) {
                System.out.println(answer.body());
                return;
            }
            System.err.println(answer.statusCode() + " " + answer.body());
        } catch (IOException error) {
            System.err.println("no answer: " + error);
        }
        System.exit(1);
    }
}
