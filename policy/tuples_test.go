package policy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tables is a State in memory with all its namespaces.
type tables struct {
	mu   sync.Mutex // guards what follows
	m    map[string][]byte
	fail bool
}

func (s *tables) Put(_ context.Context, ns, key string, val []byte, ttl time.Duration, _ *uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail || ttl <= 0 {
		return 0, errors.New("full")
	}
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	s.m[ns+"\x00"+key] = val
	return 1, nil
}

func (s *tables) Delete(_ context.Context, ns, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, ns+"\x00"+key)
	return nil
}

func (s *tables) Scan(_ context.Context, ns, _, _ string, _ int, f func(string, []byte, uint64) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.m {
		if of, key, _ := strings.Cut(k, "\x00"); of == ns {
			if err := f(key, v, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestATupleEarnsItsWayByComingBack(t *testing.T) {
	tests := []struct {
		name   string
		at     []time.Duration // of the tries
		earned bool
	}{
		{"three tries over thirty minutes", []time.Duration{0, 10 * time.Minute, 30 * time.Minute}, true},
		{"only two", []time.Duration{0, 40 * time.Minute}, false},
		{"three within less", []time.Duration{0, 10 * time.Minute, 29 * time.Minute}, false},
		{"the next one of these", []time.Duration{0, 10 * time.Minute, 29 * time.Minute, 60 * time.Minute}, true},
		{"hammering is one try", []time.Duration{0, time.Second, 2 * time.Second, 30 * time.Second, 31 * time.Minute}, false},
		{"a queue that tries once a day", []time.Duration{0, 24 * time.Hour, 47 * time.Hour}, true},
		{"who stayed away begins anew", []time.Duration{0, 10 * time.Minute, 49 * time.Hour}, false},
		{"earned, and used a week later", []time.Duration{0, 10 * time.Minute, 30 * time.Minute, 8 * 24 * time.Hour}, true},
		{"earned, and not used for long", []time.Duration{0, 10 * time.Minute, 30 * time.Minute, 20 * 24 * time.Hour}, false},
	}
	for _, tt := range tests {
		var u tuple
		for _, at := range tt.at {
			u = u.came(1_800_000_000 + int64(at/time.Second))
		}
		if u.earned != tt.earned {
			t.Errorf("%s: got %+v", tt.name, u)
		}
	}
}

func TestInDeferModeWhoKeepsComingBackGoesInline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, state := &primaries{}, &tables{}
		pr.set(&pr.up, "example.org", true)
		domains := map[string]Domain{"example.org": {AcceptAll: true, WhileUp: DeferWhileUp}}
		p, stop := admitting(t, DefaultConfig(), domains, Deps{Up: pr.isUp, State: state})
		expect := func(client, sender, to, want string) {
			t.Helper()
			if got := placed(t, p, from(t, client, sender), to); !strings.HasPrefix(got, want) {
				t.Errorf("%s, %s, %s: got %q, want %q", client, sender, to, got, want)
			}
		}
		expect("192.0.2.1", "bob@example.net", "a@example.org", "451 4.3.0")
		time.Sleep(10 * time.Minute)
		expect("192.0.2.77", "Bob@Example.NET", "A@example.org", "451 4.3.0") // its neighbour, the same tuple
		time.Sleep(time.Minute)
		stop() // what it earned so far outlives us
		p, stop = admitting(t, DefaultConfig(), domains, Deps{Up: pr.isUp, State: state})
		time.Sleep(20 * time.Minute)
		expect("192.0.2.1", "bob@example.net", "a@example.org", "inline")
		expect("192.0.2.1", "bob@example.net", "b@example.org", "451")
		expect("192.0.2.1", "eve@example.net", "a@example.org", "451")
		expect("198.51.100.1", "bob@example.net", "a@example.org", "451")
		time.Sleep(3 * 24 * time.Hour)
		expect("192.0.2.1", "bob@example.net", "a@example.org", "inline")
		stop()
		p, stop = admitting(t, DefaultConfig(), domains, Deps{Up: pr.isUp, State: state})
		defer stop()
		expect("192.0.2.1", "bob@example.net", "a@example.org", "inline")
		pr.set(&pr.up, "example.org", false)
		expect("198.51.100.1", "bob@example.net", "a@example.org", "spooled")
	})
}

func TestDamagedTuplesAreReadOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		key := func(n byte) string { return tupleNamespace + "\x00" + hex.EncodeToString(append(make([]byte, 15), n)) }
		state := &tables{m: map[string][]byte{
			key(1):                    tuple{first: now, last: now, tries: 3, earned: true}.encode(),
			key(2):                    tuple{first: now, last: now + 60, tries: 3}.encode(), // from the future
			key(3):                    {tupleVersion, 1},
			key(4):                    tuple{first: now - 1000, last: now - int64(49*time.Hour/time.Second), tries: 2}.encode(),
			tupleNamespace + "\x00xx": tuple{first: now, last: now, tries: 3}.encode(),
		}}
		p, stop := admitting(t, DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}, Deps{State: state})
		defer stop()
		if len(p.tuples.m) != 1 {
			t.Errorf("%d were read", len(p.tuples.m))
		}
	})
}

func TestTheTableOfTuplesIsBoundedAndKeepsWhoIsAlmostThere(t *testing.T) {
	ts, now := newTuples(), time.Unix(1_800_000_000, 0)
	key := func(kind byte, i int) (k tupleKey) {
		copy(k[:], fmt.Sprintf("%c%d", kind, i))
		return k
	}
	for i := range 1000 {
		ts.earned(key('a', i), now)
		ts.earned(key('a', i), now.Add(10*time.Minute))
	}
	for i := range 2 * maxTuples {
		ts.earned(key('x', i), now.Add(11*time.Minute))
	}
	if len(ts.m) > maxTuples {
		t.Errorf("%d are kept", len(ts.m))
	}
	kept := 0
	for i := range 1000 {
		if ts.earned(key('a', i), now.Add(31*time.Minute)) {
			kept++
		}
	}
	if kept < 990 {
		t.Errorf("a flood pushed out %d of 1000 who had come back", 1000-kept)
	}
}

// Whatever stands in the table, it is read as a tuple or not at all.
func FuzzDecodeTuple(f *testing.F) {
	f.Add(strings.Repeat("0a", 16), tuple{first: 1, last: 2, tries: 3, earned: true}.encode())
	f.Add("x", []byte{1})
	f.Fuzz(func(t *testing.T, key string, val []byte) {
		k, u, err := decodeTuple(key, val)
		if err == nil && (!strings.EqualFold(hex.EncodeToString(k[:]), key) || string(u.encode()) != string(val)) {
			t.Errorf("%q %x is read as %x %+v", key, val, k, u)
		}
	})
}
