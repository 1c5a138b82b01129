package forwarder

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

// TestNoMessageHasTwoFates lets a primary change its mood under many senders at once and holds what each was told against
// what the primary took.
func TestNoMessageHasTwoFates(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMoody(t, seed)
				m.XCLIENT = seed%2 == 0
				if seed%3 == 1 {
					m.Caps = []string{"PIPELINING"}
				}
				w := newWorld(t, "example.org", tier(m.Primary))
				w.dialer.Net = m.dial
				w.cfg.Inline.Sessions = 12
				w.start()
				told := tellAll(w, m, seed)
				w.unused()
				w.stop()
				m.become(away)
				m.wg.Wait()
				if n := m.Live(); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
				judgeFates(t, m, told)
			})
		})
	}
}

// tellAll sends from twenty senders while the mood changes, and gives what each sender was told.
func tellAll(w *world, m *moody, seed uint64) map[string]string {
	var mu sync.Mutex
	told := map[string]string{}
	var senders sync.WaitGroup
	for n := range 20 {
		senders.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(n)))
			for k := range 25 {
				env := w.envelope(fmt.Sprintf("198.51.100.%d", rnd.IntN(6)+1))
				env.From = mta.Path{Local: fmt.Sprintf("m%d-%d", n, k), Domain: "example.net"}
				body := letter(strings.Repeat("a line\r\n", 1+rnd.IntN(20_000)))
				got := w.relay(env, body, "bob@example.org", "eve@example.org")
				mu.Lock()
				told[env.From.String()] = got
				mu.Unlock()
				time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			}
		})
	}
	done := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 99))
		moods := []mood{well, flapping, stuck, well, choosy, throttled, broken, away}
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(rnd.IntN(8000)) * time.Millisecond):
				m.become(moods[rnd.IntN(len(moods))])
			}
		}
	})
	senders.Wait()
	close(done)
	changes.Wait()
	return told
}

// judgeFates: what was said to be taken was, once; what may go the spool's road, or was refused, was not.
func judgeFates(t *testing.T, m *moody, told map[string]string) {
	took := map[string]int{}
	for _, x := range m.Messages() {
		took[x.From]++
	}
	ends := map[string]int{}
	for from, said := range told {
		n := took[from]
		switch {
		case said == "send: in doubt":
			ends["in doubt"]++
			if n > 1 {
				t.Errorf("%s: %s, taken %d times", from, said, n)
			}
		case strings.HasPrefix(said, "send: 250 "):
			ends["taken"]++
			if n != 1 {
				t.Errorf("%s: %s, taken %d times", from, said, n)
			}
		case strings.Contains(said, "fault"):
			t.Errorf("%s: %s", from, said)
		default:
			ends[strings.SplitN(said, " ", 3)[1]]++
			if n != 0 {
				t.Errorf("%s: %s, taken %d times", from, said, n)
			}
		}
	}
	if ends["taken"] == 0 {
		t.Error("nothing was taken")
	}
	t.Log(ends)
}
