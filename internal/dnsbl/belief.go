package dnsbl

import (
	"fmt"
	"net/netip"
	"time"
)

// State is what is believed of a list. The zero value is the honest one.
type State uint8

// The states of a list.
const (
	Untested State = iota // it has not told yet whether it works; it is not believed, and tested before it is asked
	Alive                 // it passed its last test
	Dead                  // it failed; it is asked nothing but the test
	Refusing              // it answered with its own error code; it is asked nothing for a while
)

var stateNames = [...]string{"untested", "alive", "dead", "refusing"}

func (s State) String() string { return stateNames[s%4] }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// refusedFor is how long a list is left alone that answered with its error code: who goes on asking may be shut out.
const refusedFor = time.Hour

// belief is a list's state and its reason.
type belief struct {
	state  State
	why    string    // of Dead and Refusing
	until  time.Time // of Refusing
	since  time.Time
	tested time.Time // the last test that settled something
}

// testable tells whether the list may be tested.
func (b belief) testable(now time.Time) bool { return b.state != Refusing || !now.Before(b.until) }

func (b belief) become(s State, why string, now time.Time) belief {
	if b.state != s {
		b.since = now
	}
	b.state, b.why = s, why
	if s == Refusing {
		b.until = now.Add(refusedFor)
	}
	return b
}

// kind is what an answer of a list is.
type kind uint8

const (
	counts  kind = iota // within 127.0.0.0/8: it lists the address
	ignored             // 127.0.0.1, which lists nothing
	refusal             // 127.255.255.0/24: the list's word to us, not of the client
	foreign             // outside of 127.0.0.0/8: somebody else answers for the list
)

func kindOf(a netip.Addr) kind {
	if !a.Is4() {
		return foreign
	}
	b := a.As4()
	switch {
	case b[0] != 127:
		return foreign
	case b[1] == 255 && b[2] == 255:
		return refusal
	case b == [4]byte{127, 0, 0, 1}:
		return ignored
	}
	return counts
}

// hear takes a list's reply to a question about a client: the replies that count, and what is believed of the list now.
func (b belief) hear(replies []netip.Addr, now time.Time) ([]netip.Addr, belief) {
	if s, why := complaint(replies); s != Untested {
		return nil, b.become(s, why, now)
	}
	return listed(replies), b
}

// complaint is what a reply says against the list itself; Untested: nothing.
func complaint(replies []netip.Addr) (State, string) {
	for _, a := range replies {
		switch kindOf(a) {
		case refusal:
			return Refusing, refusalText(a)
		case foreign:
			return Dead, fmt.Sprintf("it answers %s, which no list does: its domain has changed hands, or the resolver redirects", a)
		}
	}
	return Untested, ""
}

func listed(replies []netip.Addr) []netip.Addr {
	var all []netip.Addr
	for _, a := range replies {
		if kindOf(a) == counts {
			all = append(all, a)
		}
	}
	return all
}

// refusalText explains the codes as the lists that use them do.
func refusalText(a netip.Addr) string {
	why := "it refuses our questions"
	switch a.As4()[3] {
	case 252:
		why = "the list's name is misspelt"
	case 254:
		why = "it refuses questions from public resolvers: use a resolver of your own"
	case 255:
		why = "it was asked too often from here"
	}
	return fmt.Sprintf("it answers its error code %s: %s", a, why)
}

// probe is the outcome of a self-test: the replies for the points that must be listed and must not (RFC 5782, 5), of
// either family. An error that is not "no such name" settles nothing.
type probe struct {
	must4, mustNot4, must6, mustNot6 reply
}

// reply is one answer of a list.
type reply struct {
	addrs []netip.Addr
	err   error // temporary trouble: nothing is known
}

// test weighs a self-test. Many lists have one family only, so one listed test point is enough; an entry for what
// nobody may list is one too many.
func (b belief) test(p probe, now time.Time) belief {
	next := b
	for _, r := range []reply{p.must4, p.mustNot4, p.must6, p.mustNot6} {
		if s, why := complaint(r.addrs); s != Untested {
			next = b.become(s, why, now)
			next.tested = now
			return next
		}
	}
	switch has := func(r reply) bool { return len(listed(r.addrs)) > 0 }; {
	case has(p.mustNot4) || has(p.mustNot6):
		next = b.become(Dead, "it lists 127.0.0.1: it lists everyone", now)
	case p.mustNot4.err != nil || p.mustNot6.err != nil:
		return b
	case has(p.must4) || has(p.must6):
		next = b.become(Alive, "", now)
	case p.must4.err != nil || p.must6.err != nil:
		return b
	default:
		next = b.become(Dead, "it does not list its test point 127.0.0.2: it has ceased, or its name is misspelt", now)
	}
	next.tested = now
	return next
}
