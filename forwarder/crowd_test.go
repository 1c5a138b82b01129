package forwarder

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

// crowd drains n messages to a primary that needs so long for each of them while it has so many sessions, and returns
// how long that took and the limit of sessions in the middle of it.
func crowd(t *testing.T, n int, takes func(sessions int) time.Duration) (took time.Duration, limit int) {
	m := newMoody(t, 1)
	m.SetScript(func(at testkit.Point) testkit.Action {
		if at.Step == testkit.AtFinal {
			time.Sleep(takes(m.Live()))
		}
		return testkit.Action{}
	})
	to := mta.Primary{Host: "192.0.2.1", Port: 25}
	w := newWorld(t, "example.org", []mta.Primary{to})
	w.dialer.Net = func(ctx context.Context, network, addr string) (net.Conn, error) { return m.dial(ctx, network, addr) }
	for range n {
		w.put(kib4, "a@example.org")
	}
	start := time.Now()
	w.start()
	for w.left() > 0 {
		if time.Sleep(time.Second); limit == 0 && w.left() < int64(n/4) {
			limit = w.f.Status()[0].Limit
		}
		if time.Since(start) > 3*time.Hour {
			t.Fatalf("%d left after %s", w.left(), time.Since(start))
		}
	}
	took = time.Since(start)
	w.stop()
	m.become(away)
	m.wg.Wait()
	return took, limit
}

// TestAPrimaryThatCollapsesUnderManySessionsGetsFew: five sessions take 50 messages a second, twenty take 3.
func TestAPrimaryThatCollapsesUnderManySessionsGetsFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20_000
		took, limit := crowd(t, n, func(sessions int) time.Duration {
			if sessions <= 5 {
				return 100 * time.Millisecond
			}
			return 100 * time.Millisecond * time.Duration(sessions*sessions*sessions) / 125
		})
		t.Logf("%d messages in %s, %d sessions", n, took, limit)
		if took > 20*time.Minute { // 400 s with five all the time, 107 minutes with twenty
			t.Errorf("%d messages took %s", n, took)
		}
		if limit > 8 {
			t.Errorf("%d sessions", limit)
		}
	})
}

// TestAPrimaryThatIsFasterWithEachSessionGetsAll: what it costs to try out fewer of them is little.
func TestAPrimaryThatIsFasterWithEachSessionGetsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 60_000
		took, limit := crowd(t, n, func(int) time.Duration { return 100 * time.Millisecond })
		t.Logf("%d messages in %s, %d sessions", n, took, limit)
		if took > n/200*time.Second*110/100 { // 200 a second
			t.Errorf("%d messages took %s", n, took)
		}
		if limit < 15 {
			t.Errorf("%d sessions", limit)
		}
	})
}
