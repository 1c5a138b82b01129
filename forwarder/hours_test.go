package forwarder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

// mood is how a primary behaves for a while.
type mood string

const (
	well      mood = "well"
	away      mood = "away"      // no connection
	flapping  mood = "flapping"  // sessions break at any step
	throttled mood = "throttled" // 451 to everyone
	greylists mood = "greylists" // each sender must come back after five minutes
	broken    mood = "broken"    // restored without its users: 550 to everyone
	stuck     mood = "stuck"     // says nothing more, at any step
	choosy    mood = "choosy"    // 421 after a few messages
)

// moody is a primary in a bubble: connections are pipes.
type moody struct {
	*testkit.Primary
	mu      sync.Mutex
	mood    mood
	rnd     *rand.Rand
	seen    map[string]time.Time // senders, for greylisting
	stopped chan struct{}        // ends the sessions of the mood
	wg      sync.WaitGroup
}

func newMoody(t *testing.T, seed uint64) *moody {
	m := &moody{Primary: testkit.NewPrimary(t), mood: well, rnd: rand.New(rand.NewPCG(seed, 7)), seen: map[string]time.Time{}, stopped: make(chan struct{})}
	m.SetScript(m.act)
	return m
}

// become changes the mood; whoever is stuck in the old one is cut off.
func (m *moody) become(x mood) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mood = x
	close(m.stopped)
	m.stopped = make(chan struct{})
}

func (m *moody) dial(context.Context, string, string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mood == away {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	stopped := m.stopped
	m.wg.Go(func() { m.Session(far, stopped) })
	return near, nil
}

func (m *moody) act(at testkit.Point) testkit.Action {
	m.mu.Lock()
	defer m.mu.Unlock()
	ends := []testkit.Action{testkit.CloseNow, testkit.Half, testkit.Bye("421 4.3.2 bye"), testkit.Garbage}
	switch m.mood {
	case away:
		return testkit.CloseNow
	case flapping:
		if m.rnd.IntN(12) == 0 {
			return ends[m.rnd.IntN(len(ends))]
		}
	case stuck:
		if m.rnd.IntN(10) == 0 {
			return testkit.StallNow
		}
	case throttled:
		if at.Step == testkit.AtRCPT {
			return testkit.Say("451 4.3.0 overloaded")
		}
	case broken:
		if at.Step == testkit.AtRCPT {
			return testkit.Say("550 5.1.1 nobody here")
		}
	case choosy:
		if at.Step == testkit.AtMAIL && at.Message > 12 {
			return testkit.Bye("421 4.7.0 enough")
		}
	case greylists:
		return m.grey(at)
	}
	return testkit.Action{}
}

func (m *moody) grey(at testkit.Point) testkit.Action {
	if at.Step != testkit.AtRCPT {
		return testkit.Action{}
	}
	first, ok := m.seen[at.From]
	if !ok {
		m.seen[at.From] = time.Now()
		first = time.Now()
	}
	if time.Since(first) < 5*time.Minute {
		return testkit.Say("450 4.2.0 Greylisted, try again in 300 seconds")
	}
	return testkit.Action{}
}

// TestHoursOfTroubleCostNoMessage lets a primary have every kind of trouble for half a day while mail comes in. Whatever
// happened: each message arrives, and none is refused, returned or held on the way.
func TestHoursOfTroubleCostNoMessage(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { hours(t, seed) })
		})
	}
}

func hours(t *testing.T, seed uint64) {
	m := newMoody(t, seed)
	to := mta.Primary{Host: "192.0.2.1", Port: 25}
	w := newWorld(t, "example.org", []mta.Primary{to})
	w.routes.tiers["example.com"] = w.routes.tiers["example.org"]
	w.dialer.Net = m.dial
	w.start()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var ids []mta.ID
	mail := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			dests := []string{"a@example.org", "b@example.com"}[:1+rnd.IntN(2)]
			ids = append(ids, w.put("x\r\n", dests...))
			time.Sleep(time.Duration(1+rnd.IntN(30)) * time.Second)
		}
	}
	moods := []mood{away, flapping, throttled, greylists, stuck, choosy, well}
	var story []mood
	for range 24 {
		x := moods[rnd.IntN(len(moods))]
		story = append(story, x)
		m.become(x)
		if x == away {
			time.Sleep(3 * time.Second) // the prober needs that
			w.gates.set(to.String(), false)
			mail(time.Duration(10+rnd.IntN(20)) * time.Minute)
			if rnd.IntN(3) == 0 { // it comes back without its users, for a while
				story = append(story, broken)
				m.become(broken)
				w.gates.set(to.String(), true)
				mail(20 * time.Minute)
			}
			m.become(well)
			w.gates.set(to.String(), true)
			continue
		}
		mail(time.Duration(5+rnd.IntN(25)) * time.Minute)
	}
	m.become(well)
	time.Sleep(3 * time.Hour) // every schedule comes to its end
	w.stop()
	m.become(away)
	m.wg.Wait()
	w.check(m, ids, story)
}

// check holds what was delivered against what was spooled.
func (w *world) check(m *moody, ids []mta.ID, story []mood) {
	w.t.Helper()
	for _, bad := range []string{"quarantined", "level=ERROR msg=\"delivery alert\"", "forwarder fault"} {
		if w.log.has(bad) {
			w.t.Errorf("%s, in %v", bad, story)
		}
	}
	if n := w.left(); n != 0 {
		log := w.log.b.String()
		w.t.Errorf("%d messages are left, after %v\n%s", n, story, log[max(0, len(log)-3000):])
	}
	came := map[string]int{}
	for _, x := range m.Messages() {
		for _, r := range x.Rcpts {
			came[x.From+" "+r]++
		}
	}
	twice := 0
	for i := range ids {
		from := fmt.Sprintf("s%d@example.net", i+1)
		if came[from+" a@example.org"] == 0 {
			w.t.Errorf("%s never came, in %v", from, story)
		}
	}
	for _, n := range came {
		twice += n - 1
	}
	if most := 64 + len(ids)/10; twice > most {
		w.t.Errorf("%d came twice", twice)
	}
	if strings.Contains(fmt.Sprint(story), string(broken)) && !w.log.has("breaker open") {
		w.t.Errorf("the breaker never opened, in %v", story)
	}
	w.t.Logf("%d messages, %d twice, %d sessions, %v", len(ids), twice, m.Conns(), story)
}
