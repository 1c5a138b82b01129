package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

// childStarved does one thing with ever more descriptors, and must live on.
func childStarved(dir string) error {
	_, what, _ := strings.Cut(os.Getenv(childEnv), "/")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: 200}); err != nil {
		return err
	}
	s, err := open(context.Background(), childConfig(dir), newStderrLog(), newMetrics(nil), slow())
	if err != nil {
		return err
	}
	for free := range 17 {
		fmt.Println("free", free)
		if err := starveOnce(s, what, free); err != nil {
			return fmt.Errorf("after %d descriptors: %w", free, err)
		}
	}
	return s.Close()
}

func starveOnce(s *Store, what string, free int) error {
	ctx := context.Background()
	var last *mta.Envelope
	for _, n := range []int{300 << 10, 3000} {
		env, err := childStore(s, n, "ann@example.org")
		if err != nil {
			return err
		}
		last = env
	}
	at, _ := s.where(last.ID)
	g, _ := s.generation(at.gen)
	if what != "roll" {
		if _, err := s.roll(g); err != nil {
			return err
		}
		if _, err := g.closeIdle(s); err != nil {
			return err
		}
	}
	back, err := starve(free)
	if err != nil {
		return err
	}
	ask := mta.ClaimRequest{ID: last.ID, Max: 1, Lease: time.Hour, IgnoreDue: true}
	var leases []mta.Lease
	switch what { // it may be an error
	case "claim":
		if leases, err = s.Claim(ctx, ask); err == nil && len(leases) == 0 { // it is put off
			err = errNoFiles
		}
	case "body":
		err = childRead(s, last.ID)
	case "roll":
		_, err = s.roll(g)
	}
	back()
	fmt.Println("was", free, err)
	s.mu.Lock()
	s.retryAt = time.Time{} // there are some again: it need not wait for that
	s.mu.Unlock()
	if len(leases) == 0 {
		if leases, err = s.Claim(ctx, ask); err != nil || len(leases) != 1 {
			return fmt.Errorf("claimed %d: %w", len(leases), err)
		}
	}
	if err := childRead(s, last.ID); err != nil {
		return err
	}
	return childSettled(s, leases, []mta.Settlement{settlement(leases[0], mta.Deferred, 451)})
}

// starve takes all descriptors but a few; back gives them back.
func starve(free int) (back func(), err error) {
	var taken []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			return nil, err
		}
		taken = append(taken, f)
	}
	if len(taken) < free {
		return nil, fmt.Errorf("%d descriptors were free", len(taken))
	}
	for _, f := range taken[:free] {
		f.Close()
	}
	return func() {
		for _, f := range taken[free:] {
			f.Close()
		}
	}, nil
}

func TestWithFewDescriptorsNothingEndsAndNothingIsLost(t *testing.T) {
	for _, what := range []string{"claim", "body", "roll"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(swiftDir(t), "spool")
			l := newLedger()
			said, failed := "", 0
			_, wait := startChild(t, "starved/"+what, dir, nil, func(line string) {
				switch {
				case strings.HasPrefix(line, "free "):
					said = line
				case strings.HasPrefix(line, "was ") && !strings.HasSuffix(line, "<nil>"):
					failed++
				}
				l.hear(line)
			})
			if err := wait(); err != nil {
				t.Errorf("the child ended with %v, at: %s", err, said)
			} else if failed == 0 || len(l.tries) != 17 {
				t.Errorf("%d failed, %d tried: that shows nothing", failed, len(l.tries))
			}
			for range 2 {
				s := openTest(t, childConfig(dir), slow())
				l.check(t, s)
				crash(s)
			}
		})
	}
}
