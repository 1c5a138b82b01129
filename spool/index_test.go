package spool

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"understudy/internal/mta"
)

// model is the index as one would write it without a thought for a million messages.
type model map[mta.ID]*modelMessage

type modelMessage struct {
	env *mta.Envelope
	p   *progress
	out map[string]uint64 // tokens of leases
}

func TestTheIndexAgreesWithASimpleModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.UnixMilli(1_700_000_000_000)
		x := newIndex(now)
		m := make(model)
		for range 600 {
			now = now.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
			step(t, r, &x, m, now)
			compare(t, &x, m, now)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		x.clear()
	}
}

var modelDests = []string{"example.com", "example.net", "example.org"}

func step(t *testing.T, r *rand.Rand, x *index, m model, now time.Time) {
	ids := make([]mta.ID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
	if len(ids) == 0 || r.IntN(3) == 0 {
		env := testEnvelope("a@example.org", "b@example.net", "c@example.com")
		env.Rcpts = env.Rcpts[:1+r.IntN(3)]
		env.ID = mta.NewID(now)
		env.Due = now.Add(time.Duration(r.IntN(10)-5) * time.Second)
		p := begin(env)
		x.add(env, loc{1, r.Uint32()}, 10, p)
		m[env.ID] = &modelMessage{env: env, p: p, out: make(map[string]uint64)}
		return
	}
	id := ids[r.IntN(len(ids))]
	msg := m[id]
	dest := msg.env.Rcpts[r.IntN(len(msg.env.Rcpts))].Dest
	row, _ := x.find(id)
	switch r.IntN(6) {
	case 0, 1:
		for _, ref := range x.claim(mta.ClaimRequest{Dest: dest, Max: 3}, now, now.Add(time.Hour)) {
			m[ref.ID].out[dest] = ref.Token
		}
	case 2:
		for d, token := range msg.out {
			i, ok := x.leased(mta.LeaseRef{ID: id, Dest: d, Token: token})
			if !ok {
				t.Errorf("a lease is unknown")
				return
			}
			x.endLease(i)
			x.postpone(i, time.Time{})
			delete(msg.out, d)
			break
		}
	default:
		op := Op(r.IntN(4) + 1)
		if !msg.p.apply(msg.env, dest, op, now.Add(time.Duration(r.IntN(9)-4)*time.Second), now) {
			return
		}
		if x.update(row, msg.env, msg.p) {
			delete(m, id)
			return
		}
		for d := range msg.out {
			if msg.p.standing(msg.env, msg.p.dest(d)).open == 0 {
				delete(msg.out, d)
			}
		}
	}
}

func compare(t *testing.T, x *index, m model, now time.Time) {
	t.Helper()
	if x.byID.n != len(m) {
		t.Errorf("%d messages, want %d", x.byID.n, len(m))
	}
	want := make(map[string]*DestStats)
	due := make(map[string][]mta.ID)
	for id, msg := range m {
		if _, ok := x.find(id); !ok {
			t.Errorf("%s is not found", id)
		}
		for i := range msg.p.dests {
			d := &msg.p.dests[i]
			s := msg.p.standing(msg.env, d)
			if s.open == 0 {
				continue
			}
			st := want[d.dest]
			if st == nil {
				st = &DestStats{Dest: d.dest}
				want[d.dest] = st
			}
			st.Messages++
			st.Bytes += 10
			_, out := msg.out[d.dest]
			if out {
				st.Leased++
			}
			if s.held {
				st.Held++
			}
			if !out && !s.held && !d.due.After(now) {
				due[d.dest] = append(due[d.dest], id)
			}
		}
	}
	for _, got := range x.stats(now) {
		w := want[got.Dest]
		delete(want, got.Dest)
		if w == nil || got.Messages != w.Messages || got.Bytes != w.Bytes || got.Leased != w.Leased || got.Held != w.Held {
			t.Errorf("%+v, want %+v", got, w)
		}
	}
	if len(want) > 0 {
		t.Errorf("no row for %v", want)
	}
	for _, dest := range modelDests {
		if got := slices.Contains(x.due(now, false), dest); got != (len(due[dest]) > 0) {
			t.Errorf("%s is due: %v, the model has %d", dest, got, len(due[dest]))
		}
	}
}

func TestTheIDTableFindsWhatIsThereAndNothingElse(t *testing.T) {
	var msgs rows[msgRow]
	var table idTable
	defer msgs.clear()
	r := rand.New(rand.NewPCG(1, 1))
	there := make(map[mta.ID]uint32)
	for range 50000 {
		if len(there) > 0 && r.IntN(5) < 2 {
			for id, row := range there {
				table.remove(&id, &msgs)
				msgs.remove(row)
				delete(there, id)
				break
			}
			continue
		}
		id := mta.NewID(time.Now())
		row := msgs.add()
		msgs.at(row).id = id
		table.add(row, &msgs)
		there[id] = row
	}
	for id, row := range there {
		if slot, ok := table.find(&id, &msgs); !ok || table.slots[slot] != row+1 {
			t.Fatalf("%s is not found", id)
		}
	}
	stranger := mta.NewID(time.Now())
	if _, ok := table.find(&stranger, &msgs); ok || table.n != len(there) {
		t.Errorf("%d rows, want %d", table.n, len(there))
	}
}

func BenchmarkClaim(b *testing.B) {
	for _, n := range []int{1000, 1000000} {
		b.Run(time.Duration(n).String()[:1]+"e"+map[int]string{1000: "3", 1000000: "6"}[n], func(b *testing.B) {
			now := time.Now()
			x := newIndex(now)
			defer x.clear()
			for range n {
				env := testEnvelope("a@example.org")
				env.ID = mta.NewID(now)
				x.add(env, loc{}, 10, begin(env))
			}
			for b.Loop() {
				for _, ref := range x.claim(mta.ClaimRequest{Dest: "example.org", Max: 10}, now, now.Add(time.Hour)) {
					i, _ := x.leased(ref)
					x.endLease(i)
					x.postpone(i, time.Time{})
				}
			}
		})
	}
}
