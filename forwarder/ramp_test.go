package forwarder

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// rates of a primary with n sessions, in messages a second.
func linear(n int) float64 { return 10 * float64(n) }

func plateau(n int) float64 { return 10 * float64(min(n, 5)) }

// collapsing is best with five; with twenty it takes a sixteenth.
func collapsing(n int) float64 {
	if n <= 5 {
		return 10 * float64(n)
	}
	return 50 * 25 / float64(n*n)
}

func fast(int) float64 { return 5000 }

// drive lets a ramp meet a primary for a time. It returns the messages taken and how often the limit changed.
func drive(r *ramp, now *time.Time, d time.Duration, rnd *rand.Rand, rate func(int) float64) (taken float64, changes int) {
	for end := now.Add(d); now.Before(end); taken++ {
		*now = now.Add(time.Duration(rnd.ExpFloat64() / rate(r.limit) * float64(time.Second)))
		before := r.limit
		r.ok(*now, r.limit)
		if r.limit != before {
			changes++
		}
	}
	return taken, changes
}

func TestTheRampFindsHowManySessionsAPrimaryIsFastestWith(t *testing.T) {
	tests := []struct {
		name        string
		rate        func(int) float64
		least, most int     // the limit in the end
		share       float64 // of what would have been possible
	}{
		{"each session brings more", linear, 14, 20, 0.93},
		{"more than five bring nothing", plateau, 3, 10, 0.9},
		{"more than five bring less", collapsing, 3, 7, 0.75},
		{"a fast sink", fast, 1, 20, 0.99},
	}
	for _, tt := range tests {
		var sum float64
		for seed := range uint64(20) {
			r, now, rnd := newRamp(20), time.Unix(0, 0), rand.New(rand.NewPCG(seed, 1))
			possible := 0.0
			for n := 1; n <= 20; n++ {
				possible = max(possible, tt.rate(n))
			}
			drive(&r, &now, 2*time.Minute, rnd, tt.rate)
			taken, changes := drive(&r, &now, 10*time.Minute, rnd, tt.rate)
			sum += taken / (600 * possible)
			if r.limit < tt.least || r.limit > tt.most {
				t.Errorf("%s: seed %d: %d sessions, want %d to %d", tt.name, seed, r.limit, tt.least, tt.most)
			}
			if changes > 60 {
				t.Errorf("%s: seed %d: the limit changed %d times in ten minutes", tt.name, seed, changes)
			}
		}
		if share := sum / 20; share < tt.share {
			t.Errorf("%s: took %.0f %% of what was possible, want %.0f", tt.name, 100*share, 100*tt.share)
		}
	}
}

func TestTheRampStepsBackWhenTheRateFallsAndComesBack(t *testing.T) {
	for seed := range uint64(20) {
		r, now, rnd := newRamp(20), time.Unix(0, 0), rand.New(rand.NewPCG(seed, 2))
		drive(&r, &now, 10*time.Minute, rnd, linear)
		if r.limit < 14 {
			t.Errorf("seed %d: %d sessions while all was well", seed, r.limit)
		}
		drive(&r, &now, time.Minute, rnd, collapsing)
		if r.limit > 10 {
			t.Errorf("seed %d: %d sessions a minute after it became too many", seed, r.limit)
		}
		drive(&r, &now, 9*time.Minute, rnd, collapsing)
		if r.limit > 7 {
			t.Errorf("seed %d: %d sessions ten minutes after it became too many", seed, r.limit)
		}
		drive(&r, &now, 10*time.Minute, rnd, linear)
		if r.limit < 14 {
			t.Errorf("seed %d: %d sessions after all was well again", seed, r.limit)
		}
	}
}

func TestTheFirstSessionsComeAsFastAsMessagesAreTaken(t *testing.T) {
	r, now := newRamp(20), time.Unix(0, 0)
	for n := 2; n <= 20; n++ {
		now = now.Add(time.Millisecond)
		if r.ok(now, r.limit); r.limit != n {
			t.Fatalf("%d sessions after %d messages", r.limit, n-1)
		}
	}
}

func TestTroubleHalvesOnceASecondAndGrowthIsSlowFromThere(t *testing.T) {
	r, now := newRamp(20), time.Unix(0, 0)
	for range 30 {
		r.ok(now, r.limit)
	}
	for range 5 {
		r.trouble(now)
	}
	if r.limit != 10 {
		t.Errorf("%d sessions, want 10", r.limit)
	}
	for range 99 {
		r.ok(now, r.limit)
	}
	if r.limit != 10 {
		t.Errorf("%d sessions after 99 messages, want 10", r.limit)
	}
	if r.ok(now, r.limit); r.limit != 11 {
		t.Errorf("%d sessions after 100 messages, want 11", r.limit)
	}
}

func TestTroubleEndsATrial(t *testing.T) {
	for _, up := range []bool{false, true} {
		r, now := newRamp(20), time.Unix(0, 0)
		r.set(12)
		r.up, r.best = up, 100
		r.try(4)
		now = now.Add(time.Minute)
		r.trouble(now)
		if r.trial != 0 || r.ceiling != 12 || r.limit > 9 {
			t.Errorf("up %v: limit %d, ceiling %d, trial %d", up, r.limit, r.ceiling, r.trial)
		}
	}
}

func TestWhatIsShortOfMailIsNotMeasured(t *testing.T) {
	r, now := newRamp(20), time.Unix(0, 0)
	for i := range 20_000 {
		now = now.Add(10 * time.Millisecond)
		if i%150 == 0 {
			r.starved()
		}
		r.ok(now, r.limit)
	}
	if r.limit != 20 {
		t.Errorf("%d sessions, want 20", r.limit)
	}
}

func TestOneSlowMeasureIsNoFall(t *testing.T) {
	r := newRamp(20)
	r.set(20)
	r.patience = patienceMax // no trial but for a fall
	for _, rate := range []float64{200, 200, 60, 200} {
		r.measured(rate, noise)
	}
	if r.trial != 0 || r.limit != 20 {
		t.Errorf("%d sessions after one slow measure", r.limit)
	}
	r.measured(60, noise)
	r.measured(60, noise)
	if r.limit != 10 {
		t.Errorf("%d sessions after two in a row, want 10", r.limit)
	}
}

func TestASingleSessionIsNeverGivenUp(t *testing.T) {
	r, now, rnd := newRamp(1), time.Unix(0, 0), rand.New(rand.NewPCG(1, 1))
	drive(&r, &now, 10*time.Minute, rnd, func(n int) float64 { return math.Max(1, float64(n)) })
	if r.limit != 1 {
		t.Errorf("%d sessions, want 1", r.limit)
	}
}
