package spooltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/spool"
)

// Run holds an engine to the contract.
func Run(t *testing.T, e Engine) {
	for _, mode := range []struct {
		name  string
		again func(t testing.TB, s spool.Spool) spool.Spool
	}{{"open", nil}, {"reopened between steps", e.Reopen}, {"killed between steps", e.Kill}} {
		if mode.again == nil && mode.name != "open" {
			continue
		}
		t.Run(mode.name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					w := &world{T: t, engine: e, again: mode.again, Spool: e.Open(t, c.cfg)}
					defer func() {
						if err := w.Close(); err != nil {
							t.Errorf("close: %v", err)
						}
					}()
					c.test(w)
				})
			}
		})
	}
}

type testCase struct {
	name string
	test func(w *world)
	cfg  spool.Config
}

const org, net, com = "example.org", "example.net", "example.com"

var cases = []testCase{
	{name: "what is put is there byte for byte, whatever its size", test: bodySizes},
	{name: "an envelope comes back with every field", test: envelopes},
	{name: "a message that is put twice is there once", test: putTwice},
	{name: "two that put the same message at once store it once", test: putAtOnce},
	{name: "a sender that fails leaves nothing", test: senderFails},
	{name: "a context that ends during the content leaves nothing", test: contextEnds},
	{name: "an envelope without recipients or ID is refused", test: badEnvelopes},
	{name: "claims come in the order of due and ID", test: claimOrder},
	{name: "what is not due is claimed only by a flush", test: ignoreDue},
	{name: "a claim is exclusive", test: exclusive},
	{name: "claims at once never get the same delivery", test: claimsAtOnce},
	{name: "one message alone can be claimed", test: claimID},
	{name: "a claim says what it wants", test: badClaims},
	{name: "a lease that lapsed is claimable, with a higher token", test: lapse},
	{name: "a lease that lapsed but was not taken again can be settled", test: settleLapsed},
	{name: "an extended lease lasts", test: extend},
	{name: "a token that was superseded changes nothing", test: fencing},
	{name: "a lease is settled once", test: settleTwice},
	{name: "a delivered message is gone", test: delivered},
	{name: "a deferred delivery waits for its next try and counts the last", test: deferred},
	{name: "some recipients of many end, the others stay", test: someRecipients},
	{name: "a recipient that is not named stays as it was", test: unnamedRecipient},
	{name: "a result for a stranger is an error and changes nothing", test: strangers},
	{name: "a refused delivery is held with the reason", test: quarantine},
	{name: "what the verdict quarantines is held from the first moment on", test: quarantinedByUs},
	{name: "siblings that settle at once take the content with them", test: siblings},
	{name: "the content stays until the last delivery ends", test: bodyLifetime},
	{name: "a report comes with its settlement or not at all", test: reports},
	{name: "a report of a settlement that is refused is not stored", test: lostReports},
	{name: "a released delivery is due again, no attempt counted", test: release},
	{name: "hold and unhold", test: holdUnhold},
	{name: "hold while leased lets the lease end", test: holdLeased},
	{name: "delete while leased ends the lease", test: deleteLeased},
	{name: "reschedule moves the next try", test: reschedule},
	{name: "an operation passes over what is not there", test: applyMissing},
	{name: "an operation on all that match", test: applyWhere},
	{name: "a reader that began before the end reads on", test: readerDuringDelete},
	{name: "pages are complete and in order", test: paging},
	{name: "pages are complete while the spool changes", test: pagingUnderChange},
	{name: "search finds what it is asked for", test: search},
	{name: "statistics add up", test: stats},
	{name: "the destinations with something due", test: dueDests},
	{name: "the time of the next try", test: nextDue},
	{name: "a watcher hears of new mail", test: watch},
	{name: "a watch ends with its context and with the spool", test: watchEnds},
	{name: "what expired is claimed as such, due or not", test: expired},
	{name: "a spool that is full says so", test: quota, cfg: spool.Config{MaxSize: 1000}},
	{name: "a domain that is full does not shut out others", test: domainQuota, cfg: spool.Config{MaxDomainSize: 1000}},
	{name: "a thousand recipients", test: manyRecipients},
	{name: "a thousand destinations", test: manyDests},
	{name: "a closed spool says so", test: closed},
	{name: "a context that is done is an error", test: contextDone},
}

func bodySizes(w *world) {
	sizes := []int{0, 1, 2, 4096, 65535, 128<<10 - 1, 128 << 10, 128<<10 + 1, 512 << 10, 1<<20 + 7, 5 << 20}
	if !testing.Short() && w.again == nil {
		sizes = append(sizes, 50<<20)
	}
	envs := make([]*mta.Envelope, len(sizes))
	for i, n := range sizes {
		envs[i] = Envelope(w.T, "ann@example.org")
		w.put(envs[i], text(n))
	}
	w.step()
	for i, n := range sizes {
		w.wantContent(envs[i].ID, text(n))
		if got := w.item(envs[i].ID, org).Size; got != int64(n) {
			w.Errorf("size %d, want %d", got, n)
		}
	}
	for _, l := range w.claim(org, 100) {
		w.settle(l, mta.Delivered, time.Time{})
	}
	w.step()
	for _, env := range envs {
		w.gone(env.ID)
	}
	w.holds(0)
}

func envelopes(w *world) {
	full := Envelope(w.T, "ann@example.org", `"o d d"@example.net`)
	full.Due = full.Received.Add(-time.Minute)
	bare := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now().UTC().Truncate(0), Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "x", Domain: com}, Dest: com}}}
	for _, env := range []*mta.Envelope{full, bare} {
		w.put(env, nil)
	}
	w.step()
	for _, env := range []*mta.Envelope{full, bare} {
		for _, dest := range env.Dests() {
			l := w.claimOne(dest)
			if !reflect.DeepEqual(l.Envelope, env) {
				w.Errorf("claimed\n%+v, put\n%+v", l.Envelope, env)
			}
			if len(l.Rcpts) != 1 || l.Rcpts[0].Outcome != mta.Deferred || l.Rcpts[0].Recipient != env.Rcpts[l.Rcpts[0].N] {
				w.Errorf("recipients %+v", l.Rcpts)
			}
		}
	}
}

func putTwice(w *world) {
	env := Envelope(w.T, "ann@example.org")
	w.put(env, []byte("one"))
	w.step()
	w.put(env, []byte("one"))
	w.step()
	w.holds(1)
	w.claimOne(org)
}

func putAtOnce(w *world) {
	env := Envelope(w.T, "ann@example.org")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = w.Put(w.Context(), env, bytes.NewReader([]byte("one"))) })
	}
	wg.Wait()
	if !slices.Contains(errs, nil) {
		w.Fatalf("none was stored: %v", errs)
	}
	w.step()
	w.holds(1)
	w.wantContent(env.ID, []byte("one"))
}

func senderFails(w *world) {
	broken := errors.New("connection lost")
	for _, n := range []int{0, 10, 200 << 10, 3 << 20} {
		env := Envelope(w.T, "ann@example.org")
		if err := w.Put(w.Context(), env, &failing{n, broken}); !errors.Is(err, broken) {
			w.Errorf("after %d octets: %v, want the reader's error", n, err)
		}
		if err := w.Put(w.Context(), env, &failing{n, io.ErrUnexpectedEOF}); !errors.Is(err, io.ErrUnexpectedEOF) {
			w.Errorf("after %d octets: %v, want io.ErrUnexpectedEOF: content was cut short", n, err)
		}
		w.step()
		w.gone(env.ID)
		w.put(env, []byte("the second try"))
		w.settle(w.claimOne(org), mta.Delivered, time.Time{})
	}
	w.holds(0)
}

func contextEnds(w *world) {
	for _, n := range []int{100, 1 << 20} {
		ctx, cancel := context.WithCancel(w.Context())
		env := Envelope(w.T, "ann@example.org")
		body := io.MultiReader(bytes.NewReader(text(n)), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }))
		if err := w.Put(ctx, env, body); !errors.Is(err, context.Canceled) {
			w.Errorf("put: %v, want context.Canceled", err)
		}
		w.step()
		w.gone(env.ID)
	}
	w.holds(0)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func badEnvelopes(w *world) {
	noID := Envelope(w.T, "ann@example.org")
	noID.ID = mta.ID{}
	noDest := Envelope(w.T, "ann@example.org")
	noDest.Rcpts[0].Dest = ""
	for name, env := range map[string]*mta.Envelope{"no ID": noID, "no destination": noDest, "no recipients": Envelope(w.T)} {
		if err := w.Put(w.Context(), env, bytes.NewReader(nil)); err == nil {
			w.Errorf("%s: was taken", name)
		}
	}
	w.holds(0)
}

func claimOrder(w *world) {
	now := time.Now()
	var want []mta.ID
	for _, ago := range []time.Duration{3 * time.Hour, 2 * time.Hour, time.Hour, time.Hour} {
		env := Envelope(w.T, "ann@example.org")
		env.Due = now.Add(-ago).Truncate(time.Second)
		want = append(want, env.ID)
		defer func() {}()
		w.put(env, nil)
	}
	sortIDs(want[2:])
	w.step()
	var got []mta.ID
	for range 2 {
		got = append(got, ids(w.claim(org, 2))...)
	}
	if !slices.Equal(got, want) {
		w.Errorf("claimed %v, want %v", got, want)
	}
}

func ignoreDue(w *world) {
	later, latest := Envelope(w.T, "ann@example.org"), Envelope(w.T, "ann@example.org")
	later.Due, latest.Due = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	w.put(latest, nil)
	w.put(later, nil)
	w.step()
	w.none(org)
	got := ids(w.claimAs(mta.ClaimRequest{Dest: org, Max: 10, Lease: time.Hour, IgnoreDue: true}))
	if want := []mta.ID{later.ID, latest.ID}; !slices.Equal(got, want) {
		w.Errorf("claimed %v, want %v", got, want)
	}
}

func exclusive(w *world) {
	w.mail("ann@example.org", "bob@example.net")
	w.step()
	w.claimOne(org)
	w.none(org)
	w.claimOne(net)
}

func claimsAtOnce(w *world) {
	const n = 60
	for range n {
		w.mail("ann@example.org")
	}
	w.step()
	var mu sync.Mutex
	seen := make(map[mta.ID]int)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for {
				leases, err := w.Claim(w.Context(), mta.ClaimRequest{Dest: org, Max: 3, Lease: time.Hour})
				if err != nil || len(leases) == 0 {
					return
				}
				mu.Lock()
				for _, l := range leases {
					seen[l.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != n {
		w.Errorf("%d messages claimed, want %d", len(seen), n)
	}
	for id, times := range seen {
		if times != 1 {
			w.Errorf("%s was claimed %d times", id, times)
		}
	}
}

func claimID(w *world) {
	w.mail("ann@example.org")
	env := Envelope(w.T, "ann@example.org", "bob@example.net")
	env.Due = time.Now().Add(time.Hour)
	w.put(env, nil)
	w.step()
	r := mta.ClaimRequest{ID: env.ID, Max: 10, Lease: time.Hour}
	if leases := w.claimAs(r); len(leases) != 0 {
		w.Errorf("%d deliveries that are not due claimed", len(leases))
	}
	r.IgnoreDue = true
	r.Dest = net
	if leases := w.claimAs(r); len(leases) != 1 || leases[0].Dest != net {
		w.Errorf("claimed %v, want the delivery to %s", leases, net)
	}
	r.Dest = ""
	if leases := w.claimAs(r); len(leases) != 1 || leases[0].Dest != org {
		w.Errorf("claimed %v, want the delivery to %s", leases, org)
	}
}

func badClaims(w *world) {
	w.mail("ann@example.org")
	for _, r := range []mta.ClaimRequest{{Max: 1, Lease: time.Hour}, {Dest: org, Lease: time.Hour}, {Dest: org, Max: 1}} {
		if _, err := w.Claim(w.Context(), r); err == nil {
			w.Errorf("claim %+v: no error", r)
		}
	}
	w.claimOne(org)
}

// short is a lease that lapses while a test waits.
const short = 5 * time.Millisecond

func lapse(w *world) {
	env := w.mail("ann@example.org")
	first := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: short})[0]
	var second []mta.Lease
	w.wait("a lapsed lease", func() bool { second = w.claim(org, 1); return len(second) == 1 })
	if second[0].ID != env.ID || second[0].Token <= first.Token {
		w.Errorf("token %d after %d", second[0].Token, first.Token)
	}
	if w.again != nil {
		w.step()
		if third := w.claimOne(org); third.Token <= second[0].Token {
			w.Errorf("token %d after a restart, %d before", third.Token, second[0].Token)
		}
	}
}

func settleLapsed(w *world) {
	env := w.mail("ann@example.org")
	l := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: short})[0]
	w.wait("a lapsed lease", func() bool { due, _ := w.DueDests(w.Context(), false); return len(due) == 1 })
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func extend(w *world) {
	w.mail("ann@example.org")
	l := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: 200 * time.Millisecond})[0]
	until, err := w.Extend(w.Context(), l.LeaseRef, time.Hour)
	if err != nil || time.Until(until) < 50*time.Minute {
		w.Fatalf("extended to %v: %v", until, err)
	}
	<-time.After(250 * time.Millisecond)
	w.none(org)
	w.settle(l, mta.Delivered, time.Time{})
	if _, err := w.Extend(w.Context(), l.LeaseRef, time.Hour); !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("extend of a settled lease: %v, want ErrLeaseLost", err)
	}
}

func fencing(w *world) {
	env := w.mail("ann@example.org")
	stale := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: short})[0]
	var fresh []mta.Lease
	w.wait("a lapsed lease", func() bool { fresh = w.claim(org, 1); return len(fresh) == 1 })
	if err := w.Settle(w.Context(), mta.Settlement{Ref: stale.LeaseRef, Results: results(stale, mta.Delivered, 250)})[0]; !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("settle: %v, want ErrLeaseLost", err)
	}
	if _, err := w.Extend(w.Context(), stale.LeaseRef, time.Hour); !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("extend: %v, want ErrLeaseLost", err)
	}
	if err := w.Release(w.Context(), time.Time{}, stale.LeaseRef); !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("release: %v, want ErrLeaseLost", err)
	}
	if i := w.item(env.ID, org); !i.Leased || i.Attempts != 0 {
		w.Errorf("a stale token changed %+v", i)
	}
	w.settle(fresh[0], mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func settleTwice(w *world) {
	env := w.mail("ann@example.org", "bob@example.org")
	l := w.claimOne(org)
	s := mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Deferred, 451), NextDue: time.Now()}
	errs := w.Settle(w.Context(), s, s)
	if errs[0] != nil || !errors.Is(errs[1], spool.ErrLeaseLost) {
		w.Fatalf("settled twice in one call: %v", errs)
	}
	if err := w.Settle(w.Context(), s)[0]; !errors.Is(err, spool.ErrLeaseLost) {
		w.Fatalf("settled again: %v, want ErrLeaseLost", err)
	}
	w.step()
	if i := w.item(env.ID, org); i.Attempts != 1 {
		w.Errorf("%d attempts, want 1", i.Attempts)
	}
	if err := w.Settle(w.Context(), s)[0]; !errors.Is(err, spool.ErrLeaseLost) {
		w.Fatalf("settled again: %v, want ErrLeaseLost", err)
	}
}

func delivered(w *world) {
	for _, o := range []mta.Outcome{mta.Delivered, mta.Returned, mta.Dropped} {
		env := w.mail("ann@example.org", "bob@example.org")
		w.step()
		w.settle(w.claimOne(org), o, time.Time{})
		w.gone(env.ID)
		w.step()
		w.gone(env.ID)
		w.none(org)
		w.holds(0)
	}
}

func deferred(w *world) {
	env := w.mail("ann@example.org")
	w.settle(w.claimOne(org), mta.Deferred, time.Now().Add(time.Hour))
	w.step()
	w.none(org)
	i := w.item(env.ID, org)
	if i.Attempts != 1 || i.Held || i.Leased || time.Until(i.Due) < 50*time.Minute || i.Reason.Code != 451 {
		w.Errorf("item %+v", i)
	}
	r := i.Rcpts[0]
	if r.Outcome != mta.Deferred || r.Reply.Text != "said so" || r.Primary != "mx1.example.org:25" || time.Since(r.At) > time.Minute {
		w.Errorf("recipient %+v", r)
	}
	l := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: time.Hour, IgnoreDue: true})
	if len(l) != 1 || l[0].Attempts != 1 || l[0].Rcpts[0].Reply.Code != 451 {
		w.Fatalf("claimed %+v", l)
	}
	// A try without a reply is none.
	w.settleAs(mta.Settlement{Ref: l[0].LeaseRef, NextDue: time.Now().Add(-time.Second)})
	w.step()
	if l := w.claimOne(org); l.Attempts != 1 {
		w.Errorf("%d attempts, want 1", l.Attempts)
	}
}

func someRecipients(w *world) {
	env := w.mail("ann@example.org", "bob@example.org", "cat@example.org", "dan@example.org")
	l := w.claimOne(org)
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, NextDue: time.Now().Add(-time.Second), Results: []mta.RcptResult{
		{N: 0, Outcome: mta.Delivered, Reply: mta.Reply{Code: 250}},
		{N: 1, Outcome: mta.Deferred, Reply: mta.Reply{Code: 450}},
		{N: 2, Outcome: mta.Quarantined, Reply: mta.Reply{Code: 550}},
		{N: 3, Outcome: mta.Deferred, Reply: mta.Reply{Code: 451}},
	}})
	w.step()
	l = w.claimOne(org)
	if len(l.Rcpts) != 2 || l.Rcpts[0].N != 1 || l.Rcpts[1].N != 3 || l.Released {
		w.Fatalf("recipients %+v, want 1 and 3", l.Rcpts)
	}
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	i := w.item(env.ID, org)
	if !i.Held || i.Reason.Code != 550 || i.Rcpts[0].Outcome != mta.Delivered || i.Rcpts[2].Outcome != mta.Quarantined {
		w.Fatalf("item %+v", i)
	}
	w.none(org)
	w.apply(spool.Unhold, 1, spool.Key{ID: env.ID})
	w.step()
	l = w.claimOne(org)
	if len(l.Rcpts) != 1 || l.Rcpts[0].N != 2 || !l.Released {
		w.Fatalf("released %v, recipients %+v, want 2", l.Released, l.Rcpts)
	}
	w.settle(l, mta.Deferred, time.Time{})
	w.step()
	if l = w.claimOne(org); !l.Released {
		w.Error("the release was forgotten")
	}
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func unnamedRecipient(w *world) {
	env := w.mail("ann@example.org", "bob@example.org")
	l := w.claimOne(org)
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Delivered, 250)[:1]})
	w.step()
	if l = w.claimOne(org); len(l.Rcpts) != 1 || l.Rcpts[0].N != 1 {
		w.Fatalf("recipients %+v, want 1", l.Rcpts)
	}
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func strangers(w *world) {
	w.mail("ann@example.org", "bob@example.net")
	l := w.claimOne(org)
	for _, n := range []int{-1, 1, 2} {
		s := mta.Settlement{Ref: l.LeaseRef, Results: []mta.RcptResult{{N: n, Outcome: mta.Delivered, Reply: mta.Reply{Code: 250}}}}
		if err := w.Settle(w.Context(), s)[0]; err == nil {
			w.Errorf("result for %d was taken", n)
		}
	}
	w.settle(l, mta.Deferred, time.Time{})
	w.step()
	w.claimOne(org)
	w.claimOne(net)
}

func quarantine(w *world) {
	env := w.mail("ann@example.org")
	w.settle(w.claimOne(org), mta.Quarantined, time.Time{})
	w.step()
	i := w.item(env.ID, org)
	if !i.Held || i.Reason.Code != 550 {
		w.Errorf("item %+v", i)
	}
	w.none(org)
	if l := w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: time.Hour, IgnoreDue: true}); len(l) != 0 {
		w.Error("a flush claimed what is held")
	}
	if due, err := w.DueDests(w.Context(), true); err != nil || len(due) != 0 {
		w.Errorf("due %v %v", due, err)
	}
	w.wantContent(env.ID, []byte("Subject: hello\r\n\r\nhello\r\n"))
}

func quarantinedByUs(w *world) {
	env := Envelope(w.T, "ann@example.org", "bob@example.net", "cat@example.org")
	env.Verdict = &mta.Verdict{Action: mta.Quarantine, Findings: []mta.Finding{
		{Name: "spf:softfail", Text: "softfail", Weight: 1},
		{Name: "rspamd:reject", Text: "this looks like spam", Weight: 15, Action: mta.Quarantine, Status: "7.23"},
	}}
	content := text(5000)
	w.put(env, content)
	w.step()
	for _, dest := range []string{org, net} {
		w.none(dest)
		i := w.item(env.ID, dest)
		if !i.Held || i.Attempts != 0 || i.Reason != (mta.Reply{Code: 550, Enhanced: "5.7.23", Text: "this looks like spam"}) {
			w.Errorf("item %+v", i)
		}
		for _, r := range i.Rcpts {
			if r.Outcome != mta.Quarantined {
				w.Errorf("recipient %+v", r)
			}
		}
		if !reflect.DeepEqual(i.Envelope, env) {
			w.Errorf("envelope\n%+v, put\n%+v", i.Envelope, env)
		}
	}
	if due, err := w.DueDests(w.Context(), true); err != nil || len(due) != 0 {
		w.Errorf("due %v %v", due, err)
	}
	if next, err := w.NextDue(w.Context()); err != nil || !next.IsZero() {
		w.Errorf("next due %v %v", next, err)
	}
	w.wantContent(env.ID, content)
	w.apply(spool.Unhold, 1, spool.Key{ID: env.ID, Dest: org})
	w.step()
	w.none(net)
	l := w.claimOne(org)
	if len(l.Rcpts) != 2 || l.Rcpts[0].Outcome != mta.Deferred {
		w.Errorf("lease %+v", l)
	}
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	if i := w.item(env.ID, net); !i.Held {
		w.Errorf("item %+v", i)
	}
	w.apply(spool.Unhold, 1, spool.Key{ID: env.ID})
	w.step()
	w.settle(w.claimOne(net), mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func siblings(w *world) {
	for range 10 {
		env := w.mail("ann@example.org", "bob@example.net", "cat@example.com")
		w.step()
		var wg sync.WaitGroup
		for _, dest := range []string{org, net, com} {
			l := w.claimOne(dest)
			wg.Go(func() { w.settle(l, mta.Delivered, time.Time{}) })
		}
		wg.Wait()
		w.gone(env.ID)
		w.step()
		w.gone(env.ID)
	}
	env := w.mail("ann@example.org", "bob@example.net")
	a, b := w.claimOne(org), w.claimOne(net)
	errs := w.Settle(w.Context(), mta.Settlement{Ref: a.LeaseRef, Results: results(a, mta.Delivered, 250)},
		mta.Settlement{Ref: b.LeaseRef, Results: results(b, mta.Delivered, 250)})
	if err := errors.Join(errs...); err != nil {
		w.Fatal(err)
	}
	w.step()
	w.gone(env.ID)
	w.holds(0)
}

func bodyLifetime(w *world) {
	for _, n := range []int{100, 300 << 10} {
		env := Envelope(w.T, "ann@example.org", "bob@example.net")
		w.put(env, text(n))
		w.settle(w.claimOne(org), mta.Delivered, time.Time{})
		w.step()
		w.wantContent(env.ID, text(n))
		if items, err := w.Get(w.Context(), env.ID); err != nil || len(items) != 1 || items[0].Dest != net {
			w.Fatalf("items %+v %v, want the delivery to %s", items, err, net)
		}
		w.settle(w.claimOne(net), mta.Delivered, time.Time{})
		w.step()
		w.gone(env.ID)
	}
}

func report(w *world, to string) mta.Report {
	env := Envelope(w.T, to)
	env.From = mta.Path{}
	return mta.Report{Envelope: env, Content: []byte("Subject: undelivered\r\n\r\nsorry\r\n")}
}

func reports(w *world) {
	env := w.mail("ann@example.org", "eve@example.org")
	w.step()
	l := w.claimOne(org)
	r1, r2 := report(w, "bob@example.net"), report(w, "cat@example.com")
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Returned, 550)[:1], Reports: []mta.Report{r1, r2}, NextDue: time.Now().Add(time.Hour)})
	w.step()
	w.holds(3)
	w.wantContent(r1.Envelope.ID, r1.Content)
	if got := w.claimOne(net); got.ID != r1.Envelope.ID || !got.Envelope.From.IsNull() {
		w.Errorf("claimed %+v", got)
	}
	if i := w.item(env.ID, org); i.Rcpts[0].Outcome != mta.Returned || i.Rcpts[1].Outcome != mta.Deferred {
		w.Errorf("item %+v", i)
	}
	w.step()
	l = w.claimAs(mta.ClaimRequest{Dest: org, Max: 1, Lease: time.Hour, IgnoreDue: true})[0]
	last := report(w, "bob@example.net")
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Returned, 550), Reports: []mta.Report{last}})
	w.step()
	w.gone(env.ID)
	w.holds(3)
	w.wantContent(last.Envelope.ID, last.Content)
}

func lostReports(w *world) {
	w.mail("ann@example.org")
	l := w.claimOne(org)
	w.apply(spool.Delete, 1, spool.Key{ID: l.ID})
	r := report(w, "bob@example.net")
	err := w.Settle(w.Context(), mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Returned, 550), Reports: []mta.Report{r}})[0]
	if !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("settle: %v, want ErrLeaseLost", err)
	}
	w.step()
	w.gone(r.Envelope.ID)
	w.holds(0)
}

func release(w *world) {
	env := w.mail("ann@example.org")
	l := w.claimOne(org)
	if err := w.Release(w.Context(), time.Time{}, l.LeaseRef); err != nil {
		w.Fatal(err)
	}
	l2 := w.claimOne(org)
	if l2.Attempts != 0 || l2.Token <= l.Token {
		w.Errorf("lease %+v", l2)
	}
	if err := w.Release(w.Context(), time.Now().Add(time.Hour), l2.LeaseRef); err != nil {
		w.Fatal(err)
	}
	w.none(org)
	if i := w.item(env.ID, org); time.Until(i.Due) < 50*time.Minute {
		w.Errorf("due %v", i.Due)
	}
	w.restart()
	w.claimOne(org) // a restart gives everything back
}

func holdUnhold(w *world) {
	env := w.mail("ann@example.org", "bob@example.net")
	w.step()
	w.apply(spool.Hold, 1, spool.Key{ID: env.ID, Dest: org})
	w.apply(spool.Hold, 0, spool.Key{ID: env.ID, Dest: org})
	w.step()
	w.none(org)
	if !w.item(env.ID, org).Held || w.item(env.ID, net).Held {
		w.Error("the wrong delivery is held")
	}
	w.apply(spool.Hold, 1, spool.Key{ID: env.ID})
	w.step()
	w.none(net)
	later := time.Now().Add(time.Hour)
	if n, err := w.Apply(w.Context(), spool.Unhold, later, spool.Key{ID: env.ID}); n != 2 || err != nil {
		w.Fatalf("unhold: %d %v", n, err)
	}
	w.step()
	w.none(org)
	if i := w.item(env.ID, org); i.Held || i.Due.Sub(later).Abs() > time.Second {
		w.Errorf("item %+v", i)
	}
}

func holdLeased(w *world) {
	env := w.mail("ann@example.org")
	l := w.claimOne(org)
	w.apply(spool.Hold, 1, spool.Key{ID: env.ID})
	if i := w.item(env.ID, org); !i.Held || !i.Leased {
		w.Errorf("item %+v", i)
	}
	w.settle(l, mta.Deferred, time.Time{})
	w.none(org)
	w.step()
	w.none(org)
	w.apply(spool.Unhold, 1, spool.Key{ID: env.ID})
	w.settle(w.claimOne(org), mta.Delivered, time.Time{})
	w.gone(env.ID)
}

func deleteLeased(w *world) {
	env := w.mail("ann@example.org", "bob@example.net")
	l := w.claimOne(org)
	w.apply(spool.Delete, 1, spool.Key{ID: env.ID, Dest: org})
	if err := w.Settle(w.Context(), mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Delivered, 250)})[0]; !errors.Is(err, spool.ErrLeaseLost) {
		w.Errorf("settle: %v, want ErrLeaseLost", err)
	}
	w.step()
	w.none(org)
	w.apply(spool.Delete, 1, spool.Key{ID: env.ID})
	w.step()
	w.gone(env.ID)
}

func reschedule(w *world) {
	env := w.mail("ann@example.org")
	if n, err := w.Apply(w.Context(), spool.Reschedule, time.Now().Add(time.Hour), spool.Key{ID: env.ID}); n != 1 || err != nil {
		w.Fatalf("reschedule: %d %v", n, err)
	}
	w.step()
	w.none(org)
	w.apply(spool.Reschedule, 1, spool.Key{ID: env.ID})
	w.step()
	w.claimOne(org)
}

func applyMissing(w *world) {
	env := w.mail("ann@example.org")
	for _, op := range []spool.Op{spool.Hold, spool.Unhold, spool.Reschedule, spool.Delete} {
		w.apply(op, 0, spool.Key{ID: mta.NewID(time.Now())}, spool.Key{ID: env.ID, Dest: net})
	}
	if _, err := w.Apply(w.Context(), 0, time.Time{}, spool.Key{ID: env.ID}); err == nil {
		w.Error("operation 0 was done")
	}
	w.apply(spool.Delete, 1, spool.Key{ID: env.ID}, spool.Key{ID: env.ID})
	w.gone(env.ID)
}

func applyWhere(w *world) {
	for i := range 30 {
		w.mail(fmt.Sprintf("u%d@%s", i, []string{org, net, com}[i%3]))
	}
	w.step()
	calls := 0
	n, err := w.ApplyWhere(w.Context(), spool.Query{Dest: org}, spool.Hold, time.Time{}, func(done int) { calls++ })
	if err != nil || n != 10 || calls == 0 {
		w.Fatalf("hold: %d %v, %d calls", n, err, calls)
	}
	w.step()
	held := true
	if n := len(w.list(spool.Query{Held: &held})); n != 10 {
		w.Errorf("%d held, want 10", n)
	}
	if n, err := w.ApplyWhere(w.Context(), spool.Query{Rcpt: "U2@"}, spool.Delete, time.Time{}, nil); err != nil || n != 1 {
		w.Errorf("delete: %d %v", n, err)
	}
	if n, err := w.ApplyWhere(w.Context(), spool.Query{}, spool.Delete, time.Time{}, nil); err != nil || n != 29 {
		w.Errorf("delete: %d %v", n, err)
	}
	w.step()
	w.holds(0)
}

func readerDuringDelete(w *world) {
	for _, n := range []int{50 << 10, 2 << 20} {
		env := Envelope(w.T, "ann@example.org")
		w.put(env, text(n))
		r, err := w.Body(w.Context(), env.ID)
		if err != nil {
			w.Fatal(err)
		}
		defer r.Close()
		head := make([]byte, 100)
		if _, err := io.ReadFull(r, head); err != nil {
			w.Fatal(err)
		}
		w.apply(spool.Delete, 1, spool.Key{ID: env.ID})
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(append(head, rest...), text(n)) {
			w.Errorf("%d octets read: %v", len(rest)+100, err)
		}
	}
}

func paging(w *world) {
	want := 0
	for i := range 40 {
		w.mail([][]string{{"a@example.org"}, {"a@example.org", "b@example.net", "c@example.com"}}[i%2]...)
		want += 1 + 2*(i%2)
	}
	w.step()
	for _, limit := range []int{1, 2, 7, 1000, 0} {
		keys := byKey(w.list(spool.Query{Limit: limit}))
		if len(keys) != want || !isSorted(keys) || len(slices.Compact(keys)) != want {
			w.Errorf("limit %d: %d rows, want %d, each once and in order", limit, len(keys), want)
		}
	}
	items, next, err := w.List(w.Context(), spool.Query{Limit: 5})
	if err != nil || len(items) != 5 || next == "" {
		w.Errorf("%d rows, next %q, %v", len(items), next, err)
	}
	if _, _, err := w.List(w.Context(), spool.Query{After: "nonsense"}); err == nil {
		w.Error("a bad cursor was taken")
	}
}

func pagingUnderChange(w *world) {
	var stay []mta.ID
	for i := range 40 {
		env := w.mail("ann@example.org")
		if i%2 == 0 {
			stay = append(stay, env.ID)
		}
	}
	seen := make(map[mta.ID]bool)
	q := spool.Query{Limit: 5}
	for {
		items, next, err := w.List(w.Context(), q)
		if err != nil {
			w.Fatal(err)
		}
		for _, i := range items {
			if seen[i.ID] {
				w.Errorf("%s was listed twice", i.ID)
			}
			seen[i.ID] = true
			if !slices.Contains(stay, i.ID) {
				w.apply(spool.Delete, 1, spool.Key{ID: i.ID})
			}
		}
		w.mail("new@example.org")
		if next == "" || len(seen) > 200 {
			break
		}
		q.After = next
		w.step()
	}
	for _, id := range stay {
		if !seen[id] {
			w.Errorf("%s was passed over", id)
		}
	}
}

func search(w *world) {
	a := Envelope(w.T, "Ann.Smith@example.org")
	a.From = mta.Path{Local: "News", Domain: "Letters.example"}
	b := Envelope(w.T, "bob@example.net", "ann@example.com")
	b.From = mta.Path{}
	w.put(a, nil)
	w.put(b, nil)
	w.step()
	yes := true
	for _, c := range []struct {
		q    spool.Query
		want int
	}{
		{spool.Query{}, 3},
		{spool.Query{Dest: org}, 1},
		{spool.Query{Dest: "example"}, 0},
		{spool.Query{From: "news@LETTERS"}, 1},
		{spool.Query{From: "bob"}, 0},
		{spool.Query{Rcpt: "ANN"}, 3},
		{spool.Query{Rcpt: "smith@"}, 1},
		{spool.Query{Rcpt: "ann", Dest: com}, 1},
		{spool.Query{Before: time.Now().Add(time.Minute)}, 3},
		{spool.Query{Before: time.Now().Add(-time.Minute)}, 0},
		{spool.Query{Held: &yes}, 0},
	} {
		if got := w.list(c.q); len(got) != c.want {
			w.Errorf("%+v: %d rows, want %d", c.q, len(got), c.want)
		}
	}
}

func stats(w *world) {
	for range 3 {
		w.mail("ann@example.org")
	}
	env := w.mail("bob@example.net")
	w.step()
	w.apply(spool.Hold, 1, spool.Key{ID: env.ID})
	w.claim(org, 1)
	rows, err := w.Stats(w.Context())
	if err != nil || len(rows) != 2 {
		w.Fatalf("%+v %v", rows, err)
	}
	n, o := rows[0], rows[1]
	if n.Dest != net || n.Messages != 1 || n.Held != 1 || n.Leased != 0 || !n.NextDue.IsZero() {
		w.Errorf("%+v", n)
	}
	if o.Dest != org || o.Messages != 3 || o.Held != 0 || o.Leased != 1 || o.Bytes != 3*25 || o.NextDue.IsZero() || time.Since(o.Oldest) > time.Minute {
		w.Errorf("%+v", o)
	}
	u, err := w.Usage(w.Context())
	if err != nil || u.Messages != 4 || u.Bytes != 4*25 {
		w.Errorf("usage %+v %v", u, err)
	}
	w.step()
	if _, err := w.ApplyWhere(w.Context(), spool.Query{}, spool.Delete, time.Time{}, nil); err != nil {
		w.Fatal(err)
	}
	if rows, err := w.Stats(w.Context()); err != nil || len(rows) != 0 {
		w.Errorf("%+v %v", rows, err)
	}
}

func dueDests(w *world) {
	w.mail("ann@example.org", "bob@example.com")
	later := Envelope(w.T, "cat@example.net")
	later.Due = time.Now().Add(time.Hour)
	w.put(later, nil)
	w.step()
	for ignore, want := range map[bool][]string{false: {com, org}, true: {com, net, org}} {
		if got, err := w.DueDests(w.Context(), ignore); err != nil || !slices.Equal(got, want) {
			w.Errorf("ignoring due %v: %v %v, want %v", ignore, got, err, want)
		}
	}
	w.claimOne(org)
	if got, err := w.DueDests(w.Context(), false); err != nil || !slices.Equal(got, []string{com}) {
		w.Errorf("%v %v", got, err)
	}
}

func nextDue(w *world) {
	if next, err := w.NextDue(w.Context()); err != nil || !next.IsZero() {
		w.Errorf("empty: %v %v", next, err)
	}
	env := Envelope(w.T, "ann@example.org")
	env.Due = time.Now().Add(time.Hour)
	w.put(env, nil)
	w.step()
	if next, err := w.NextDue(w.Context()); err != nil || next.Sub(env.Due).Abs() > time.Second {
		w.Errorf("%v %v, want %v", next, err, env.Due)
	}
	w.mail("ann@example.org")
	w.step()
	if next, err := w.NextDue(w.Context()); err != nil || next.IsZero() || time.Until(next) > 0 {
		w.Errorf("%v %v, want the past", next, err)
	}
	held := w.claimOne(org)
	if next, err := w.NextDue(w.Context()); err != nil || time.Until(next) < 50*time.Minute {
		w.Errorf("%v %v, want the end of the lease or the next due", next, err)
	}
	w.settle(held, mta.Quarantined, time.Time{})
	w.apply(spool.Delete, 1, spool.Key{ID: env.ID})
	w.step()
	if next, err := w.NextDue(w.Context()); err != nil || !next.IsZero() {
		w.Errorf("only held: %v %v, want zero", next, err)
	}
}

func watch(w *world) {
	hints, err := w.Watch(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	want := func(dest string) {
		w.Helper()
		select {
		case got := <-hints:
			if got != dest {
				w.Errorf("hint %q, want %q", got, dest)
			}
		case <-time.After(10 * time.Second):
			w.Fatalf("no hint for %s", dest)
		}
	}
	env := w.mail("ann@example.org")
	want(org)
	l := w.claimOne(org)
	if err := w.Release(w.Context(), time.Time{}, l.LeaseRef); err != nil {
		w.Fatal(err)
	}
	want(org)
	w.apply(spool.Hold, 1, spool.Key{ID: env.ID})
	w.apply(spool.Unhold, 1, spool.Key{ID: env.ID})
	want(org)
	l = w.claimOne(org)
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Returned, 550), Reports: []mta.Report{report(w, "bob@example.net")}})
	want(net)
	for range 100 { // nobody listens: nothing waits
		w.mail("ann@example.com")
	}
	want(com)
}

func watchEnds(w *world) {
	ctx, cancel := context.WithCancel(w.Context())
	ended := func(hints <-chan string) {
		w.Helper()
		select {
		case _, ok := <-hints:
			if ok {
				w.Error("a hint of nothing")
			}
		case <-time.After(10 * time.Second):
			w.Fatal("the channel was not closed")
		}
	}
	a, err := w.Watch(ctx)
	if err != nil {
		w.Fatal(err)
	}
	b, err := w.Watch(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	cancel()
	ended(a)
	if err := w.Close(); err != nil {
		w.Fatal(err)
	}
	ended(b)
}

func expired(w *world) {
	old := Envelope(w.T, "ann@example.org", "bob@example.net")
	old.Due, old.Expires = time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	young, eternal := Envelope(w.T, "ann@example.org"), Envelope(w.T, "ann@example.org")
	eternal.Expires = time.Time{}
	for _, env := range []*mta.Envelope{old, young, eternal} {
		w.put(env, nil)
	}
	w.step()
	r := mta.ClaimRequest{Dest: net, Max: 10, Lease: time.Hour, Expired: true}
	first := w.claimAs(r)
	if len(first) != 1 || first[0].ID != old.ID || first[0].Dest != net {
		w.Fatalf("claimed %+v", first)
	}
	r.Dest = ""
	second := w.claimAs(r)
	if len(second) != 1 || second[0].ID != old.ID || second[0].Dest != org {
		w.Fatalf("claimed %+v", second)
	}
	if more := w.claimAs(r); len(more) != 0 {
		w.Errorf("claimed %+v", more)
	}
	w.settle(first[0], mta.Quarantined, time.Time{})
	w.settle(second[0], mta.Returned, time.Time{})
	w.step()
	if more := w.claimAs(r); len(more) != 0 {
		w.Errorf("held mail expired again: %+v", more)
	}
}

// wantFull expects the reply that there is no room.
func (w *world) wantFull(what string, err error) {
	w.Helper()
	r, ok := errors.AsType[*mta.Reply](err)
	if !ok || r.Code != 452 || r.Enhanced != "4.3.1" {
		w.Errorf("%s: %v, want 452 4.3.1", what, err)
	}
}

func quota(w *world) {
	env := Envelope(w.T, "ann@example.org")
	w.put(env, text(800))
	w.step()
	if err := w.Room(w.Context(), net, 200); err != nil {
		w.Errorf("200 octets: %v", err)
	}
	w.wantFull("201 octets", w.Room(w.Context(), net, 201))
	w.wantFull("a put of 201 octets", w.Put(w.Context(), Envelope(w.T, "bob@example.net"), bytes.NewReader(text(201))))
	w.wantFull("a put of a file", w.Put(w.Context(), Envelope(w.T, "bob@example.net"), bytes.NewReader(text(1<<20))))
	w.settle(w.claimOne(org), mta.Delivered, time.Time{})
	w.step()
	if err := w.Room(w.Context(), net, 1000); err != nil {
		w.Errorf("1000 octets: %v", err)
	}
	w.holds(0)
}

func domainQuota(w *world) {
	w.put(Envelope(w.T, "ann@example.org"), text(800))
	w.step()
	w.wantFull("201 octets", w.Room(w.Context(), org, 201))
	w.wantFull("a put of 201 octets", w.Put(w.Context(), Envelope(w.T, "bob@example.org"), bytes.NewReader(text(201))))
	if err := w.Room(w.Context(), net, 900); err != nil {
		w.Errorf("another domain: %v", err)
	}
	w.put(Envelope(w.T, "bob@example.net"), text(900))
}

func manyRecipients(w *world) {
	var rcpts []string
	for i := range 1000 {
		rcpts = append(rcpts, fmt.Sprintf("user%d@example.org", i))
	}
	env := w.mail(rcpts...)
	w.step()
	l := w.claimOne(org)
	if len(l.Rcpts) != 1000 {
		w.Fatalf("%d recipients", len(l.Rcpts))
	}
	long := mta.Reply{Code: 450, Enhanced: "4.2.1", Text: string(bytes.Repeat([]byte("x"), 5000))}
	var res []mta.RcptResult
	for i := range 1000 {
		res = append(res, mta.RcptResult{N: i, Outcome: mta.Outcome(i % 2), Reply: long})
	}
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: res})
	w.step()
	l = w.claimOne(org)
	if len(l.Rcpts) != 500 || l.Rcpts[1].N != 2 || l.Rcpts[1].Reply.Code != 450 {
		w.Fatalf("%d recipients left", len(l.Rcpts))
	}
	w.settle(l, mta.Delivered, time.Time{})
	w.step()
	w.gone(env.ID)
}

func manyDests(w *world) {
	var rcpts []string
	for i := range 1000 {
		rcpts = append(rcpts, fmt.Sprintf("ann@d%d.example", i))
	}
	env := w.mail(rcpts...)
	w.step()
	due, err := w.DueDests(w.Context(), false)
	if err != nil || len(due) != 1000 {
		w.Fatalf("%d destinations: %v", len(due), err)
	}
	for _, d := range due[:50] {
		w.settle(w.claimOne(d), mta.Delivered, time.Time{})
	}
	w.step()
	if items, err := w.Get(w.Context(), env.ID); err != nil || len(items) != 950 {
		w.Fatalf("%d left: %v", len(items), err)
	}
	w.apply(spool.Delete, 950, spool.Key{ID: env.ID})
	w.gone(env.ID)
}

func closed(w *world) {
	env := w.mail("ann@example.org")
	l := w.claimOne(org)
	if err := w.Close(); err != nil {
		w.Fatal(err)
	}
	_, err1 := w.Claim(w.Context(), mta.ClaimRequest{Dest: org, Max: 1, Lease: time.Hour})
	_, err2 := w.Get(w.Context(), env.ID)
	_, err3 := w.Watch(w.Context())
	for i, err := range []error{
		w.Put(w.Context(), Envelope(w.T, "ann@example.org"), bytes.NewReader(nil)), w.Room(w.Context(), org, 1), w.Ready(w.Context()), err1, err2, err3,
		w.Settle(w.Context(), mta.Settlement{Ref: l.LeaseRef})[0], w.Release(w.Context(), time.Time{}, l.LeaseRef),
	} {
		if !errors.Is(err, spool.ErrClosed) {
			w.Errorf("call %d: %v, want ErrClosed", i, err)
		}
	}
	if err := w.Close(); err != nil {
		w.Errorf("second close: %v", err)
	}
}

func contextDone(w *world) {
	ctx, cancel := context.WithCancel(w.Context())
	cancel()
	env, there := Envelope(w.T, "ann@example.org"), w.mail("bob@example.net")
	l := w.claimOne(net)
	end := mta.Settlement{Ref: l.LeaseRef, Results: results(l, mta.Delivered, 250)}
	key := spool.Key{ID: there.ID}
	of := func(_ any, err error) error { return err }
	_, _, listed := w.List(ctx, spool.Query{})
	for name, err := range map[string]error{
		"put": w.Put(ctx, env, bytes.NewReader(nil)), "room": w.Room(ctx, org, 1), "list": listed,
		"claim":  of(w.Claim(ctx, mta.ClaimRequest{Dest: net, Max: 1, Lease: time.Hour, IgnoreDue: true})),
		"extend": of(w.Extend(ctx, l.LeaseRef, time.Hour)), "settle": w.Settle(ctx, end)[0],
		"release": w.Release(ctx, time.Time{}, l.LeaseRef), "body": of(w.Body(ctx, there.ID)),
		"due dests": of(w.DueDests(ctx, true)), "next due": of(w.NextDue(ctx)), "get": of(w.Get(ctx, there.ID)),
		"apply": of(w.Apply(ctx, spool.Delete, time.Time{}, key)), "apply where": of(w.ApplyWhere(ctx, spool.Query{}, spool.Delete, time.Time{}, nil)),
		"stats": of(w.Stats(ctx)), "usage": of(w.Usage(ctx)), "ready": w.Ready(ctx),
	} {
		if !errors.Is(err, context.Canceled) {
			w.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	w.gone(env.ID)
	if err := w.Settle(w.Context(), end)[0]; err != nil {
		w.Errorf("a call that was cancelled changed something: %v", err)
	}
}
