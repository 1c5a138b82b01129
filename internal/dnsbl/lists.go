package dnsbl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
)

const (
	maxAsking = 256             // questions to lists at the same time, of all clients
	testEvery = time.Hour       // between two tests of a list
	testRetry = time.Minute     // where a test settled nothing
	testWait  = 3 * time.Second // the longest that a test may take
)

// Config says which lists are asked.
type Config struct {
	// Entries are lists with patterns and weights; a list may stand in several.
	Entries []Entry
	// Names are what lists are called in everything that leaves this package, where their own name holds a secret key.
	Names map[string]string
	// Wait is how long a check waits for all lists together.
	Wait time.Duration
}

// Resolver is what the lists need of the DNS.
type Resolver interface {
	// LookupList returns A records. dnsx.ErrNotFound in the error's chain says that there are certainly none.
	LookupList(ctx context.Context, name string) ([]netip.Addr, error)
}

// Hit is a list that has a client.
type Hit struct {
	List    string
	Replies []netip.Addr // those that count, in order
	Weight  float64      // the sum over the entries that match, each once
}

// Status tells an operator how a list is.
type Status struct {
	List   string    `json:"list"`
	State  State     `json:"state"`
	Why    string    `json:"why,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Until  time.Time `json:"until,omitzero"`  // when a refusing list is asked again
	Tested time.Time `json:"tested,omitzero"` // the last test that settled something
}

// Lists asks lists. Any number of goroutines may use it.
type Lists struct {
	dns    Resolver
	events func(mta.Event)
	asking chan struct{}
	wake   chan struct{} // there is a list to be tested

	mu    sync.Mutex // guards what follows
	wait  time.Duration
	lists []*list // in the order of the configuration; the slice is never changed
}

// list is one list with the entries that name it.
type list struct {
	name string // where it is asked

	mu      sync.Mutex // guards what follows
	called  string     // what others know it by; empty: it is no longer used
	entries []Entry    // never changed, only replaced
	belief  belief
	alarmed bool
	next    time.Time     // when to test it
	testing chan struct{} // closed when the test under way has ended; nil: there is none
}

// New makes Lists. It asks nothing yet. Events is told of lists that die and come back, nil: nobody is; it must not
// block.
func New(cfg Config, dns Resolver, events func(mta.Event)) *Lists {
	if events == nil {
		events = func(mta.Event) {}
	}
	l := &Lists{dns: dns, events: events, asking: make(chan struct{}, maxAsking), wake: make(chan struct{}, 1)}
	l.Reload(cfg)
	return l
}

// Reload puts other entries in force. What is believed of a list that stays is kept; alarms of those that go end.
func (l *Lists) Reload(cfg Config) {
	names, entries := byList(cfg.Entries)
	l.mu.Lock()
	old := l.lists
	l.lists, l.wait = make([]*list, len(names)), cfg.Wait
	for i, name := range names {
		n := &list{name: name}
		if at := slices.IndexFunc(old, func(o *list) bool { return o.name == name }); at >= 0 {
			n = old[at]
		}
		l.rename(n, cmp.Or(cfg.Names[name], name))
		n.mu.Lock()
		n.entries = entries[i]
		n.mu.Unlock()
		l.lists[i] = n
	}
	l.mu.Unlock()
	for _, o := range old {
		if !slices.Contains(names, o.name) {
			l.rename(o, "")
		}
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// byList gathers the entries of each list, in the order in which the lists are first named.
func byList(all []Entry) (lists []string, entries [][]Entry) {
	for _, e := range all {
		i := slices.Index(lists, e.List)
		if i < 0 {
			i, lists, entries = len(lists), append(lists, e.List), append(entries, nil)
		}
		entries[i] = append(entries[i], e)
	}
	return lists, entries
}

// rename changes what a list is known by, "" when it is no longer used. An alarm in its old name ends; if there is still
// a reason, the next answer raises it in the new one.
func (l *Lists) rename(n *list, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.alarmed && n.called != to {
		n.alarmed = false
		l.events(mta.Event{Kind: mta.EventListDead, Subject: n.called, Level: mta.Over, At: time.Now(), Text: "The DNS list " + n.called + " is no longer used"})
	}
	n.called = to
}

func (l *Lists) inForce() ([]*list, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lists, l.wait
}

// Status tells how each list is, in the order of the configuration.
func (l *Lists) Status() []Status {
	lists, _ := l.inForce()
	all := make([]Status, 0, len(lists))
	for _, n := range lists {
		n.mu.Lock()
		b, called := n.belief, n.called
		n.mu.Unlock()
		s := Status{List: called, State: b.state, Why: b.why, Since: b.since, Tested: b.tested}
		if b.state == Refusing {
			s.Until = b.until
		}
		all = append(all, s)
	}
	return all
}

// Check asks all lists about a client at the same time and returns those that have it, in the order of the
// configuration. What a list has not answered when the time is over is no opinion. Addresses that are not global are in
// no list.
func (l *Lists) Check(ctx context.Context, client netip.Addr) []Hit {
	client = client.Unmap().WithZone("")
	lists, wait := l.inForce()
	if len(lists) == 0 || !isGlobal(client) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answers := make([][]netip.Addr, len(lists))
	var g sync.WaitGroup
	for i, n := range lists {
		g.Go(func() { answers[i] = l.check(ctx, n, client) })
	}
	g.Wait()
	var hits []Hit
	for i, n := range lists {
		if h, ok := weigh(n, answers[i]); ok {
			hits = append(hits, h)
		}
	}
	return hits
}

// isGlobal reports an address that the Internet routes: only those can be listed, and others are nobody's business.
func isGlobal(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// weigh sums what the entries of one list make of its replies, each entry once.
func weigh(n *list, replies []netip.Addr) (Hit, bool) {
	n.mu.Lock()
	entries, called := n.entries, n.called
	n.mu.Unlock()
	h := Hit{List: called}
	for _, e := range entries {
		if slices.ContainsFunc(replies, e.Pattern.Match) {
			h.Weight += e.Weight
		}
	}
	for _, a := range replies {
		if slices.ContainsFunc(entries, func(e Entry) bool { return e.Pattern.Match(a) }) {
			h.Replies = append(h.Replies, a)
		}
	}
	return h, len(h.Replies) > 0
}

// check asks one list, after its first test if there was none yet, and learns from the answer.
func (l *Lists) check(ctx context.Context, n *list, client netip.Addr) []netip.Addr {
	if state, due := n.stands(time.Now()); state == Untested && due {
		l.test(ctx, n)
	}
	if state, _ := n.stands(time.Now()); state != Alive {
		return nil
	}
	r := l.ask(ctx, Name(client, n.name))
	if r.err != nil {
		return nil
	}
	var listed []netip.Addr
	l.learn(n, func(b belief, now time.Time) belief {
		listed, b = b.hear(r.addrs, now)
		return b
	})
	return listed
}

// stands tells how the list is, and whether it is due for a test.
func (n *list) stands(now time.Time) (s State, due bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.belief.state, !n.next.After(now) && n.belief.testable(now)
}

// ask puts one question when its turn has come.
func (l *Lists) ask(ctx context.Context, name string) reply {
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return reply{err: ctx.Err()}
	}
	defer func() { <-l.asking }()
	addrs, err := l.dns.LookupList(ctx, name)
	if errors.Is(err, dnsx.ErrNotFound) {
		return reply{}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return reply{addrs: addrs, err: err}
}

// learn changes what is believed of a list, and tells of alarms that begin and end; under the lock, so that they are told
// in their order.
func (l *Lists) learn(n *list, change func(belief, time.Time) belief) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.belief = change(n.belief, now)
	b, was := n.belief, n.alarmed
	if b.state == Refusing {
		n.next = b.until
	}
	n.alarmed = (b.state == Dead || b.state == Refusing) && n.called != ""
	switch {
	case n.alarmed && !was:
		l.events(mta.Event{
			Kind: mta.EventListDead, Subject: n.called, Level: mta.Alarm, At: now,
			Text:    fmt.Sprintf("The DNS list %s is not asked any more: %s", n.called, b.why),
			Details: map[string]string{"state": b.state.String()},
		})
	case was && !n.alarmed:
		l.events(mta.Event{Kind: mta.EventListDead, Subject: n.called, Level: mta.Over, At: now, Text: "The DNS list " + n.called + " works again"})
	}
}

// points are the names of the addresses that a list must have and must not have (RFC 5782, 5).
func points(list string) (must4, mustNot4, must6, mustNot6 string) {
	v4 := func(last byte) string { return reverse4([4]byte{127, 0, 0, last}) + list }
	v6 := func(last byte) string { return nibbles([16]byte{10: 0xff, 11: 0xff, 12: 0x7f, 15: last}) + list }
	return v4(2), v4(1), v6(2), v6(1)
}

// test asks a list about its test points. Callers at the same time share one test, so it goes on when the one that
// began it has no more use for it.
func (l *Lists) test(ctx context.Context, n *list) {
	n.mu.Lock()
	if under := n.testing; under != nil {
		n.mu.Unlock()
		select {
		case <-under:
		case <-ctx.Done():
		}
		return
	}
	done := make(chan struct{})
	n.testing = done
	n.mu.Unlock()
	p := l.probe(context.WithoutCancel(ctx), n.name)
	l.learn(n, func(b belief, now time.Time) belief {
		next := b.test(p, now)
		n.next = now.Add(testEvery)
		if next.tested != now {
			n.next = now.Add(testRetry)
		}
		return next
	})
	n.mu.Lock()
	n.testing = nil
	n.mu.Unlock()
	close(done)
}

func (l *Lists) probe(ctx context.Context, name string) probe {
	ctx, cancel := context.WithTimeout(ctx, testWait)
	defer cancel()
	var p probe
	must4, mustNot4, must6, mustNot6 := points(name)
	var g sync.WaitGroup
	g.Go(func() { p.must4 = l.ask(ctx, must4) })
	g.Go(func() { p.mustNot4 = l.ask(ctx, mustNot4) })
	g.Go(func() { p.must6 = l.ask(ctx, must6) })
	g.Go(func() { p.mustNot6 = l.ask(ctx, mustNot6) })
	g.Wait()
	return p
}

// Run tests each list now and every hour, until ctx is done.
func (l *Lists) Run(ctx context.Context) error {
	for {
		next := l.Test(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-time.After(max(time.Until(next), time.Second)):
		}
	}
}

// Test tests the lists that are due, and tells when the next one will be.
func (l *Lists) Test(ctx context.Context) (next time.Time) {
	lists, _ := l.inForce()
	next = time.Now().Add(testEvery)
	for _, n := range lists {
		if _, due := n.stands(time.Now()); due {
			l.test(ctx, n)
		}
		n.mu.Lock()
		if n.next.Before(next) {
			next = n.next
		}
		n.mu.Unlock()
		if ctx.Err() != nil {
			break
		}
	}
	return next
}

// ParseEntries reads all lines, or says what is wrong with which.
func ParseEntries(lines []string) ([]Entry, []mta.Fault) {
	var entries []Entry
	var faults []mta.Fault
	seen := map[string]bool{}
	for i, s := range lines {
		e, err := ParseEntry(strings.TrimSpace(s))
		switch key := e.List + "=" + e.Pattern.text; {
		case err != nil:
			faults = append(faults, mta.NewFault(fmt.Sprintf("[%d]", i), "%v", err))
		case seen[key]:
			faults = append(faults, mta.NewFault(fmt.Sprintf("[%d]", i), "%s is given twice with the same pattern", e.List))
		default:
			seen[key] = true
			entries = append(entries, e)
		}
	}
	return entries, faults
}
