// Rank candidates with the JDK's own HTTP client, Java 17 or later:
//
//     java Score.java URL MODEL REQUEST.json [BUDGET_MS]
//
// The budget covers connecting, all attempts and the pauses between them. Each attempt sends the
// remaining budget as its deadline. If the server is busy (429 or 503), the client retries after
// the seconds in Retry-After plus a random delay, if that is within the budget. A scoring call
// changes nothing, so it is safe to repeat.

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;

public final class Score {
    private static final Set<Integer> BUSY = Set.of(429, 503);
    private static final long MILLIS = 1_000_000; // nanoseconds

    /** One client for the whole process: it reuses connections. HTTP/2 would need TLS. */
    private static final HttpClient CLIENT =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    /** Scores, retries while the server is busy, and returns the last response. */
    static HttpResponse<String> score(URI url, byte[] request, Duration budget)
            throws IOException, InterruptedException {
        long end = System.nanoTime() + budget.toNanos();
        while (true) {
            long leftMs = Math.max((end - System.nanoTime()) / MILLIS, 1);
            HttpRequest.Builder call = HttpRequest.newBuilder(url)
                    .timeout(Duration.ofMillis(leftMs))
                    .header("content-type", "application/json")
                    .header("x-request-timeout-ms", Long.toString(leftMs))
                    .POST(HttpRequest.BodyPublishers.ofByteArray(request));
            String key = System.getenv("GATEHOUSE_KEY");
            if (key != null) {
                call.header("authorization", "Bearer " + key);
            }
            HttpResponse<String> answer = CLIENT.send(call.build(), BodyHandlers.ofString());
            long pauseMs = pauseMs(answer);
            if (!BUSY.contains(answer.statusCode()) || pauseMs >= (end - System.nanoTime()) / MILLIS) {
                return answer;
            }
            Thread.sleep(pauseMs);
        }
    }

    private static long pauseMs(HttpResponse<?> answer) {
        String stated = answer.headers().firstValue("retry-after").orElse("");
        long seconds = stated.matches("\\d{1,6}") ? Long.parseLong(stated) : 1;
        return (long) (seconds * 1000 * ThreadLocalRandom.current().nextDouble(1, 1.25));
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
