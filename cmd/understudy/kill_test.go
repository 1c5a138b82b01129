package main

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"understudy/internal/testkit"
)

// generations are a spool's, as they come and go.
type generations struct {
	dir     string
	seen    map[string]bool
	removed map[string]bool
}

// look reads the folder. A number that was passed over was there between two looks.
func (g *generations) look() {
	names, _ := filepath.Glob(filepath.Join(g.dir, "g????????"))
	there, highest := map[string]bool{}, 0
	for _, name := range names {
		there[filepath.Base(name)] = true
		var n int
		fmt.Sscanf(filepath.Base(name), "g%d", &n)
		highest = max(highest, n)
	}
	for n := 1; n <= highest; n++ {
		name := fmt.Sprintf("g%08d", n)
		g.seen[name] = true
		if !there[name] {
			g.removed[name] = true
		}
	}
}

// deferSome keeps some messages waiting, alone among those that end: their generations must stay.
func deferSome(at testkit.Point) testkit.Action {
	var n int
	if _, err := fmt.Sscanf(at.From, "sender-%06d@", &n); err == nil && n%250 == 50 && at.Step == testkit.AtRCPT {
		return testkit.Say("451 4.7.1 later")
	}
	return testkit.Action{}
}

func TestWhatGotA250SurvivesKill9WhileGenerationsComeAndGo(t *testing.T) {
	const rounds, clients = 6, 4
	p, b := testkit.NewPrimary(t), newBook()
	p.SetScript(deferSome)
	p.Start()
	p.Stop()
	s := newServer(t, fmt.Sprintf("domains: {example.org: {accept_all: true, while_up: accept, primaries: [%q]}}\n"+
		"healthprobe: {every_down: 50ms, confirm: 20ms}\nlog: {level: warn}\n"+
		"spool: {dir: spool, reserve: 28MiB, reserve_percent: 0, ballast: 0, generation_size: 4MiB}\n", p.Addr()))
	g := &generations{dir: filepath.Join(s.dir, "spool"), seen: map[string]bool{}, removed: map[string]bool{}}
	for round := range rounds {
		drains := round%2 == 1 // the others leave something for the next one to find
		if drains {
			p.Start()
		}
		s.start()
		g.look()
		seen, removed := len(g.seen), len(g.removed)
		over := make(chan struct{})
		var senders sync.WaitGroup
		senders.Go(func() {
			b.give(s.smtp, clients, func(int, string) bool {
				select {
				case <-over:
					return false
				default:
					return true
				}
			})
		})
		s.until("generations came, and went where there is a primary", func() bool {
			g.look()
			return len(g.seen) >= seen+2 && (!drains || len(g.removed) > removed)
		})
		s.kill()
		close(over)
		senders.Wait()
		p.Stop()
	}
	p.SetScript(nil)
	s.start()
	p.Start()
	if out, err := s.run("flush", "--domain", "example.org", "--wait", "--timeout", "20s"); err != nil {
		t.Fatalf("flush: %v\n%s", err, out)
	}
	s.untilDrained()
	s.until("every generation but the last is gone", func() bool { g.look(); return len(g.removed) >= len(g.seen)-2 })
	doubles := b.arrived(t, p)
	taken, refused := b.count()
	t.Logf("%d messages got a 250, %d did not, %d came twice; %d generations, %d removed", taken, refused, doubles, len(g.seen), len(g.removed))
	// What was handed over and not noted down at a kill goes out again: of each session one on its way, and one before it.
	if most := rounds / 2 * 20 * 2; doubles > most {
		t.Errorf("%d messages came twice, want at most %d", doubles, most)
	}
	s.stop()
}
