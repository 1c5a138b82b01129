package spool

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

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
		if r.IntN(5) > 0 {
			env.Expires = now.Add(time.Duration(r.IntN(60)-5) * time.Second)
		}
		p := begin(env)
		x.add(env, loc{1, r.Uint32()}, 10, p)
		m[env.ID] = &modelMessage{env: env, p: p, out: make(map[string]uint64)}
		return
	}
	id := ids[r.IntN(len(ids))]
	msg := m[id]
	dest := msg.env.Rcpts[r.IntN(len(msg.env.Rcpts))].Dest
	row, _ := x.find(id)
	switch r.IntN(7) {
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
	case 3:
		req := mta.ClaimRequest{Expired: true, Dest: []string{"", dest}[r.IntN(2)], Max: 1 + r.IntN(4)}
		m.wantExpired(t, req, x.claim(req, now, now.Add(time.Hour)), now)
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

// wantExpired holds a claim of what expired against the model, which takes it over.
func (m model) wantExpired(t *testing.T, r mta.ClaimRequest, refs []mta.LeaseRef, now time.Time) {
	t.Helper()
	left := make(map[string][]*modelMessage)
	n := 0
	for _, msg := range m {
		for i := range msg.p.dests {
			d := &msg.p.dests[i]
			s := msg.p.standing(msg.env, d)
			_, out := msg.out[d.dest]
			if s.open > 0 && !s.held && !out && (r.Dest == "" || r.Dest == d.dest) && !msg.env.Expires.IsZero() && !msg.env.Expires.After(now) {
				left[d.dest] = append(left[d.dest], msg)
				n++
			}
		}
	}
	if len(refs) != min(n, r.Max) {
		t.Errorf("%d claimed, %d have expired", len(refs), n)
	}
	for _, ref := range refs {
		msg := m[ref.ID]
		if !slices.Contains(left[ref.Dest], msg) {
			t.Errorf("%s at %s has not expired, or is not claimable", ref.ID, ref.Dest)
		}
		left[ref.Dest] = slices.DeleteFunc(left[ref.Dest], func(o *modelMessage) bool { return o == msg })
		msg.out[ref.Dest] = ref.Token
	}
	for n, ref := range refs {
		msg := m[ref.ID]
		for _, o := range left[ref.Dest] {
			if o.env.Expires.Before(msg.env.Expires) {
				t.Errorf("%s expired before %s and was not claimed", o.env.ID, ref.ID)
			}
		}
		if n == 0 {
			continue
		}
		last := refs[n-1]
		if c := m[last.ID].p.dest(last.Dest).due.Compare(msg.p.dest(ref.Dest).due); c > 0 || c == 0 && bytes.Compare(last.ID[:], ref.ID[:]) > 0 {
			t.Errorf("%s comes before %s", last.ID, ref.ID)
		}
	}
}

// checkHeaps holds what is claimable against its two orders.
func checkHeaps(t *testing.T, x *index) {
	t.Helper()
	in := [orders]int{}
	for _, d := range x.dests {
		for o := byDue; d != nil && o < orders; o++ {
			for at, i := range d.ready[o] {
				in[o]++
				if row := x.dels.at(i); int(row.place[o]) != at || row.held || row.leased || x.dests[row.dest] != d {
					t.Errorf("order %d of %s, place %d: %+v", o, d.name, at, row)
				}
				if at > 0 && x.less(o, i, d.ready[o][(at-1)/2]) {
					t.Errorf("order %d of %s: place %d is before the one above it", o, d.name, at)
				}
			}
		}
	}
	var want [orders]int
	x.each(func(m uint32, row *msgRow) bool {
		for i := row.first; i != none; i = x.dels.at(i).next {
			if d := x.dels.at(i); !d.held && !d.leased {
				want[byDue]++
				if row.expires != never {
					want[byExpiry]++
				}
			}
		}
		return true
	})
	if in != want {
		t.Errorf("%d are in the orders, want %d", in, want)
	}
}

func compare(t *testing.T, x *index, m model, now time.Time) {
	t.Helper()
	checkHeaps(t, x)
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

// expiring is an index of n messages to as many destinations as there are names, of which one expires each millisecond,
// beginning an hour from now.
func expiring(n int, now time.Time, names ...string) *index {
	x := newIndex(now)
	for i := range n {
		at := time.Duration(i) * time.Millisecond
		env := testEnvelope("a@" + names[i%len(names)])
		env.ID, env.Expires = mta.NewID(now.Add(at)), now.Add(time.Hour+at)
		x.add(env, loc{}, 10, begin(env))
	}
	return &x
}

func TestAClaimOfExpiredMailLooksAtLittleElse(t *testing.T) {
	const n = 1 << 17
	now := time.Now()
	x := expiring(n, now, modelDests...)
	defer x.clear()
	for _, c := range []struct {
		after     time.Duration // so many milliseconds: messages have expired
		dest      string
		max, want int
	}{
		{-1, "", 256, 0},
		{10, "", 256, 10},
		{n / 2, "", 256, 256},
		{n, "", 256, 256},
		{n, modelDests[1], 256, 256},
		{n, "", 1, 1},
		{n, "example.edu", 256, 0},
	} {
		at := now.Add(time.Hour + c.after*time.Millisecond - time.Microsecond)
		before := x.looked
		refs := x.claim(mta.ClaimRequest{Expired: true, Dest: c.dest, Max: c.max}, at, at.Add(time.Hour))
		// Out of two heaps of up to 2^17 rows, and sorted.
		if looked, most := x.looked-before, len(refs)*(2*2*17+2*8); len(refs) != c.want || looked > most {
			t.Errorf("%+v: %d claimed, %d rows compared, more than %d", c, len(refs), looked, most)
		}
	}
}

func TestWhatCantBeReadIsNoObstacleToTheExpiryOfOtherMail(t *testing.T) {
	now := time.Now()
	x := expiring(4, now, "example.org")
	defer x.clear()
	now = now.Add(2 * time.Hour)
	r := mta.ClaimRequest{Expired: true, Max: 2}
	var got []mta.ID
	for range 2 {
		for _, ref := range x.claim(r, now, now.Add(time.Hour)) {
			got = append(got, ref.ID)
			i, _ := x.leased(ref)
			x.endLease(i)
			x.shun(i, now.Add(retryRead))
		}
		checkHeaps(t, x)
	}
	slices.SortFunc(got, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
	if len(slices.Compact(got)) != 4 {
		t.Errorf("claimed %v, want four", got)
	}
	if refs := x.claim(r, now, now.Add(time.Hour)); len(refs) != 0 {
		t.Errorf("claimed again at once: %v", refs)
	}
	if refs := x.claim(r, now.Add(retryRead+time.Millisecond), now.Add(time.Hour)); len(refs) != 2 {
		t.Errorf("claimed later: %v, want two", refs)
	}
}

func TestASearchThatFindsNothingLooksThroughTheIndexFewTimes(t *testing.T) {
	const n = 3000
	s := NewMemory()
	defer s.Close()
	for range n {
		if err := s.Put(t.Context(), testEnvelope("ann@example.org"), bytes.NewReader(nil)); err != nil {
			t.Fatal(err)
		}
	}
	before := s.idx.looked
	items, next, err := s.List(t.Context(), Query{From: "nobody", Limit: 10})
	if err != nil || len(items) > 0 || next != "" {
		t.Fatalf("%v %q %v", items, next, err)
	}
	// 11, 88, 704 and 5632 messages at a time, and a look that there are no more.
	if times := (s.idx.looked - before) / n; times > 5 {
		t.Errorf("it was looked through %d times", times)
	}
}

func TestPagesOfIDsAreTheFirstThatMatchInWhateverOrderTheyCame(t *testing.T) {
	now := time.Now()
	r := rand.New(rand.NewPCG(1, 4))
	for name, place := range map[string]func(i int) int{
		"as they are":     func(i int) int { return i },
		"the other way":   func(i int) int { return -i },
		"in no order":     func(int) int { return r.IntN(1 << 30) },
		"mostly in order": func(i int) int { return i + r.IntN(100) },
	} {
		x := newIndex(now)
		var all []mta.ID
		for i := range 20000 {
			env := testEnvelope("a@example.org")
			env.ID = mta.NewID(now.Add(time.Duration(place(i)) * time.Millisecond))
			x.add(env, loc{}, 10, begin(env))
			all = append(all, env.ID)
		}
		slices.SortFunc(all, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
		for _, n := range []int{1, 11, 300, 19999, 30000, -1} {
			for _, from := range []int{0, 1, 7000, 19999} {
				want := all[from:]
				if n >= 0 {
					want = want[:min(n, len(want))]
				}
				if got := x.ids(&Query{}, all[from], true, n); !slices.Equal(got, want) {
					t.Errorf("%s: %d from %d on are not the first", name, n, from)
				}
			}
		}
		x.clear()
	}
}

func TestARowIsAsSmallAsItWasMeantToBe(t *testing.T) {
	if m, d := unsafe.Sizeof(msgRow{}), unsafe.Sizeof(delRow{}); m > 48 || d > 32 {
		t.Errorf("a message takes %d octets and a delivery %d, more than 48 and 32", m, d)
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
				env.ID, env.Expires = mta.NewID(now), now.Add(time.Hour)
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

// BenchmarkClaimExpired is a claim of 256 where all have expired, and what brings them back.
func BenchmarkClaimExpired(b *testing.B) {
	for _, n := range []int{1000, 1000000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			now := time.Now()
			x := expiring(n, now, modelDests...)
			defer x.clear()
			now = now.Add(2 * time.Hour)
			for b.Loop() {
				refs := x.claim(mta.ClaimRequest{Expired: true, Max: 256}, now, now.Add(time.Hour))
				if len(refs) != 256 {
					b.Fatalf("%d claimed", len(refs))
				}
				for _, ref := range refs {
					i, _ := x.leased(ref)
					x.endLease(i)
					x.postpone(i, time.Time{})
				}
			}
		})
	}
}
