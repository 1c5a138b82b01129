package spooltest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/spool"
)

// Engine is a way to a spool.
type Engine struct {
	// Open gives an empty spool with the quotas of cfg; the engine fills in the rest.
	Open func(t testing.TB, cfg spool.Config) spool.Spool
	// Reopen closes s and gives what a new process would find.
	Reopen func(t testing.TB, s spool.Spool) spool.Spool
	// Kill leaves s as a process that is killed would, and gives what a new one would find. An engine that is not on the
	// disk has none.
	Kill func(t testing.TB, s spool.Spool) spool.Spool
}

// world is one test's spool with what a test says most.
type world struct {
	*testing.T
	spool.Spool
	engine Engine
	again  func(t testing.TB, s spool.Spool) spool.Spool // between steps; may be nil
}

// step ends a step of a test: in some runs the spool is opened anew.
func (w *world) step() {
	w.Helper()
	if w.again != nil {
		w.Spool = w.again(w.T, w.Spool)
	}
}

func (w *world) restart() {
	w.Helper()
	w.Spool = w.engine.Reopen(w.T, w.Spool)
}

// text makes content of n octets that differs from message to message.
func text(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	r.Read(b)
	return b
}

// Envelope makes an envelope with every field set, for recipients like "ann@example.org".
func Envelope(t testing.TB, rcpts ...string) *mta.Envelope {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Microsecond)
	env := &mta.Envelope{
		ID: mta.NewID(now), Received: now, Node: "mx2.example.org",
		Peer: mta.Peer{
			Addr: netip.MustParseAddrPort("192.0.2.10:40123"), Local: netip.MustParseAddrPort("198.51.100.20:25"),
			Name: "mail.example.net", Helo: "mail.example.net", Proto: "ESMTPS",
			TLS: &mta.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256", ServerName: "mx2.example.org"},
		},
		From:    mta.Path{Local: "bob", Domain: "example.net"},
		Params:  mta.Params{Body: "8BITMIME", SMTPUTF8: true, RequireTLS: true, Ret: "HDRS", EnvID: "env 1"},
		Expires: now.Add(30 * 24 * time.Hour),
		Verdict: &mta.Verdict{
			Action: mta.Mark, Score: 4.5, At: now,
			Findings: []mta.Finding{{Name: "dnsbl:zen.example.org", Text: "listed", Detail: "127.0.0.2", Weight: 4.5, Action: mta.Mark, Status: "7.1"}},
			Auth: mta.Auth{
				SPF: mta.AuthResult{Result: "pass", Domain: "example.net"}, Helo: mta.AuthResult{Result: "none", Domain: "mail.example.net"},
				DKIM:  []mta.AuthResult{{Result: "pass", Domain: "example.net", Selector: "s1"}},
				DMARC: mta.AuthResult{Result: "pass", Domain: "example.net", Reason: "quarantine"}, Aligned: true,
			},
		},
	}
	for _, r := range rcpts {
		p, err := mta.ParsePath(r)
		if err != nil {
			t.Fatal(err)
		}
		env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: p, ORcpt: "rfc822;" + r, Notify: mta.NotifyFailure, Dest: p.DomainKey()})
	}
	return env
}

// put stores a message and expects it to work.
func (w *world) put(env *mta.Envelope, content []byte) {
	w.Helper()
	if err := w.Put(w.Context(), env, bytes.NewReader(content)); err != nil {
		w.Fatalf("put: %v", err)
	}
}

// mail stores a small message for recipients.
func (w *world) mail(rcpts ...string) *mta.Envelope {
	w.Helper()
	env := Envelope(w.T, rcpts...)
	w.put(env, []byte("Subject: hello\r\n\r\nhello\r\n"))
	return env
}

// claim takes what is due for dest.
func (w *world) claim(dest string, n int) []mta.Lease {
	w.Helper()
	return w.claimAs(mta.ClaimRequest{Dest: dest, Max: n, Lease: time.Hour})
}

func (w *world) claimAs(r mta.ClaimRequest) []mta.Lease {
	w.Helper()
	leases, err := w.Claim(w.Context(), r)
	if err != nil {
		w.Fatalf("claim: %v", err)
	}
	return leases
}

// claimOne expects exactly one delivery.
func (w *world) claimOne(dest string) mta.Lease {
	w.Helper()
	leases := w.claim(dest, 10)
	if len(leases) != 1 {
		w.Fatalf("%d deliveries claimed for %s, want 1", len(leases), dest)
	}
	return leases[0]
}

// none expects nothing to be claimable.
func (w *world) none(dest string) {
	w.Helper()
	if leases := w.claim(dest, 10); len(leases) != 0 {
		w.Fatalf("%d deliveries claimed for %s, want none", len(leases), dest)
	}
}

// results gives each recipient of a lease the same end.
func results(l mta.Lease, o mta.Outcome, code int) []mta.RcptResult {
	var list []mta.RcptResult
	for _, r := range l.Rcpts {
		list = append(list, mta.RcptResult{N: r.N, Outcome: o, Reply: mta.Reply{Code: code, Enhanced: "2.0.0", Text: "said so"}, Primary: "mx1.example.org:25"})
	}
	return list
}

// settle ends a lease with one outcome for all its recipients.
func (w *world) settle(l mta.Lease, o mta.Outcome, next time.Time) {
	w.Helper()
	code := map[mta.Outcome]int{mta.Deferred: 451, mta.Delivered: 250, mta.Quarantined: 550, mta.Returned: 550, mta.Dropped: 550}[o]
	w.settleAs(mta.Settlement{Ref: l.LeaseRef, Results: results(l, o, code), NextDue: next})
}

func (w *world) settleAs(s mta.Settlement) {
	w.Helper()
	if err := w.Settle(w.Context(), s)[0]; err != nil {
		w.Fatalf("settle: %v", err)
	}
}

// content reads a message's content to its end.
func (w *world) content(id mta.ID) ([]byte, error) {
	w.Helper()
	r, err := w.Body(w.Context(), id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantContent expects a message to be there, as it was put.
func (w *world) wantContent(id mta.ID, want []byte) {
	w.Helper()
	got, err := w.content(id)
	if err != nil {
		w.Fatalf("body: %v", err)
	}
	if !bytes.Equal(got, want) {
		w.Fatalf("body of %d octets is not the one of %d that was put", len(got), len(want))
	}
}

// gone expects that nothing is left of a message.
func (w *world) gone(id mta.ID) {
	w.Helper()
	if _, err := w.Get(w.Context(), id); !errors.Is(err, spool.ErrNotFound) {
		w.Fatalf("get of a message that is done: %v, want ErrNotFound", err)
	}
	if _, err := w.content(id); !errors.Is(err, spool.ErrNotFound) {
		w.Fatalf("body of a message that is done: %v, want ErrNotFound", err)
	}
}

// item expects one delivery of a message.
func (w *world) item(id mta.ID, dest string) spool.Item {
	w.Helper()
	items, err := w.Get(w.Context(), id)
	if err != nil {
		w.Fatalf("get: %v", err)
	}
	for _, i := range items {
		if i.Dest == dest {
			return i
		}
	}
	w.Fatalf("message has no delivery to %s", dest)
	return spool.Item{}
}

// apply does an operation to one delivery and expects it to change n.
func (w *world) apply(op spool.Op, n int, k ...spool.Key) {
	w.Helper()
	got, err := w.Apply(w.Context(), op, time.Time{}, k...)
	if err != nil || got != n {
		w.Fatalf("%s changed %d (%v), want %d", op, got, err, n)
	}
}

// list walks through all pages.
func (w *world) list(q spool.Query) []spool.Item {
	w.Helper()
	var all []spool.Item
	for {
		items, next, err := w.List(w.Context(), q)
		if err != nil {
			w.Fatalf("list: %v", err)
		}
		all = append(all, items...)
		if next == "" {
			return all
		}
		q.After = next
	}
}

// usage expects so many messages.
func (w *world) holds(n int64) {
	w.Helper()
	u, err := w.Usage(w.Context())
	if err != nil {
		w.Fatalf("usage: %v", err)
	}
	if u.Messages != n || n == 0 && u.Bytes != 0 {
		w.Fatalf("spool holds %d messages of %d octets, want %d", u.Messages, u.Bytes, n)
	}
}

// wait polls until ok, with a limit.
func (w *world) wait(what string, ok func() bool) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			w.Fatalf("%s: did not come", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// failing reads n octets and then fails.
type failing struct {
	n   int
	err error
}

func (f *failing) Read(b []byte) (int, error) {
	if f.n == 0 {
		return 0, f.err
	}
	n := min(len(b), f.n)
	f.n -= n
	return n, nil
}

func ids(leases []mta.Lease) []mta.ID {
	var list []mta.ID
	for _, l := range leases {
		list = append(list, l.ID)
	}
	return list
}

func sortIDs(list []mta.ID) []mta.ID {
	slices.SortFunc(list, func(a, b mta.ID) int { return bytes.Compare(a[:], b[:]) })
	return list
}

func byKey(items []spool.Item) []string {
	var list []string
	for _, i := range items {
		list = append(list, fmt.Sprintf("%s/%s", i.ID, i.Dest))
	}
	return list
}

func isSorted[T cmp.Ordered](list []T) bool { return slices.IsSorted(list) }
