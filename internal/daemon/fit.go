package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/inbound"
	"understudy/internal/admin"
	"understudy/internal/config"
	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/parity"
	"understudy/internal/smtpc"
	"understudy/policy"
	"understudy/spool"
)

// openTables opens the small tables. Without them we forget what we learned at each restart, but mail goes on.
func (d *Daemon) openTables(ctx context.Context, cfg *config.Config) spool.State {
	tables, err := spool.OpenState(ctx, cfg.Spool, d.opts.Log)
	if err != nil {
		d.opts.Log.LogAttrs(ctx, slog.LevelError, "tables not opened, what is learned is forgotten at the next restart", slog.Any("err", err))
		return spool.NewMemoryState()
	}
	return tables
}

// intake is the spool as inbound sees it: what is taken gets its end, is counted to the outage that made it wait, and
// does not wait behind a backlog.
type intake struct {
	*spool.Store
	prober *healthprobe.Prober
	fwd    *forwarder.Forwarder
}

func (s *intake) Put(ctx context.Context, env *mta.Envelope, body io.Reader) error {
	dests := env.Dests()
	for _, dest := range dests {
		end := env.Received.Add(s.fwd.Expiry(dest))
		if env.Expires.IsZero() || end.Before(env.Expires) {
			env.Expires = end
		}
	}
	if err := s.Store.Put(ctx, env, body); err != nil {
		return err
	}
	for _, dest := range dests {
		s.prober.Taken(dest)
	}
	s.fwd.Arrived(env.ID, dests...)
	return nil
}

// relay is the forwarder's inline road as inbound sees it.
type relay struct{ fwd *forwarder.Forwarder }

func (r relay) Begin(ctx context.Context, env *mta.Envelope, dest string) (inbound.Transaction, error) {
	t, err := r.fwd.Inline(ctx, env, dest)
	if err != nil {
		return nil, err // and no typed nil
	}
	return t, nil
}

// fragile tells whether the refusals of a domain's primary are to be doubted.
func (d *Daemon) fragile(domain string) bool {
	return time.Since(d.prober.Recovered(domain)) < d.policy.AmnesiaWindow() || d.fwd.Broken(domain)
}

// primaryNames are the host names of a domain's primaries, as last looked up.
func (d *Daemon) primaryNames(domain string) []string {
	var names []string
	for _, p := range d.prober.Primaries(domain) {
		names = append(names, p.Host)
	}
	return names
}

// ended learns from the drain which recipients exist, and how our verdict compares with the primary's. A refusal that the forwarder did not believe teaches nothing.
func (d *Daemon) ended(e forwarder.Ended) {
	if e.Step != smtpc.StepNone {
		d.policy.Settled(e.Envelope, e.Hindsight, e.Rcpt, e.Outcome, e.Reply, e.Step == smtpc.StepRCPT)
	}
	switch {
	case e.Outcome == mta.Delivered:
		d.policy.Learn(e.Rcpt.Addr, e.Reply, policy.ByDelivery)
	case e.Step == smtpc.StepRCPT && e.Reply.Permanent() && e.Outcome != mta.Deferred:
		d.policy.Learn(e.Rcpt.Addr, e.Reply, policy.ByRcpt)
	}
}

// helpers tells how the DNS lists and the filters do.
func (d *Daemon) helpers() []admin.HelperStatus {
	var list []admin.HelperStatus
	for _, l := range d.policy.Lists() {
		list = append(list, admin.HelperStatus{Kind: "dns_list", Name: l.List, State: fmt.Sprint(l.State), Since: l.Since, Why: l.Why})
	}
	for _, f := range d.policy.Filters().Status() {
		h := admin.HelperStatus{Kind: f.Kind, Name: f.Name, State: string(f.State), Since: f.Since}
		if f.Failures > 0 {
			h.Why = f.LastError
		}
		list = append(list, h)
	}
	return list
}

// counting is what the counts of parity need of its configuration.
func counting(c policy.Parity) parity.Config {
	return parity.Config{AlarmBypass: c.AlarmBypass, AlarmMessages: c.AlarmMessages, Keep: c.Keep}
}

// proof is what a message's verdict at receipt says for whoever would be sent a report.
func proof(env *mta.Envelope) forwarder.Proof {
	return forwarder.Proof{Authentic: env.Verdict.Authentic(), Clean: env.Verdict != nil && env.Verdict.Action == mta.Accept}
}

// callout asks a domain's primary about a recipient, as a delivery would begin: nothing is sent.
func (d *Daemon) callout(ctx context.Context, domain string, to mta.Path) (mta.Reply, error) {
	primary, err := d.openPrimary(ctx, domain)
	if err != nil {
		return mta.Reply{}, err
	}
	conn, err := d.dialer.DialWith(ctx, primary, d.fwd.Options(domain))
	if err != nil {
		return mta.Reply{}, err
	}
	defer conn.Close()
	if _, err := conn.Mail(ctx, mta.Path{}); err != nil { // a refusal too: it says nothing of the recipient
		return mta.Reply{}, err
	}
	reply, err := conn.Rcpt(ctx, to)
	if e, ok := errors.AsType[*smtpc.Error](err); ok && e.Reply != nil { // a refusal is an answer, too
		reply, err = *e.Reply, nil
	}
	if err != nil {
		return mta.Reply{}, err
	}
	if _, err := conn.Reset(ctx); err == nil {
		conn.Quit(ctx) // whatever it says, we know what we came for
	}
	return reply, nil
}

// openPrimary is the best primary of a domain that takes mail now.
func (d *Daemon) openPrimary(ctx context.Context, domain string) (mta.Primary, error) {
	route, err := d.prober.Route(ctx, domain)
	if err != nil {
		return mta.Primary{}, err
	}
	for _, tier := range route.Tiers {
		for _, p := range tier {
			if d.prober.Open(p.String()) {
				return p, nil
			}
		}
	}
	return mta.Primary{}, fmt.Errorf("no primary of %s is up", domain)
}

// tlsaOf fits the resolver to what DANE wants: a name without records is no error.
func tlsaOf(r *dnsx.Resolver) func(context.Context, string, uint16) ([]smtpc.TLSA, bool, error) {
	return func(ctx context.Context, host string, port uint16) ([]smtpc.TLSA, bool, error) {
		found, authentic, err := r.LookupTLSA(ctx, host, port)
		if err != nil && !errors.Is(err, dnsx.ErrNotFound) {
			return nil, false, err
		}
		records := make([]smtpc.TLSA, len(found))
		for i, t := range found {
			records[i] = smtpc.TLSA(t)
		}
		return records, authentic, nil
	}
}

// recovered is what ETRN and other hints bring: a probe now and, when that is good, the drain. A hint is never believed
// unprobed.
func (d *Daemon) recovered(ctx context.Context, domain string) error {
	d.prober.Hint(domain)
	d.fwd.Flush(ctx, domain, mta.ID{})
	return nil
}

// primaryAddrs are the addresses of a domain's primaries, as last looked up.
func (d *Daemon) primaryAddrs(domain string) []netip.Addr {
	st, ok := d.prober.Domain(domain)
	if !ok {
		return nil
	}
	keys := slices.Concat(st.Tiers...)
	var addrs []netip.Addr
	for _, p := range d.prober.Status() {
		if slices.Contains(keys, p.Primary) {
			addrs = append(addrs, p.Addrs...)
		}
	}
	return addrs
}

// backlog counts, by domain, what a drain has yet to try: mail that the primary deferred waits for its own time.
func (d *Daemon) backlog(ctx context.Context) (map[string]int64, error) {
	stats, err := d.store.Stats(ctx)
	if err != nil {
		return nil, err
	}
	n := make(map[string]int64, len(stats))
	for _, st := range stats {
		if st.Leased > 0 || !st.NextDue.After(time.Now()) {
			n[st.Dest] = st.Messages - st.Held
		}
	}
	return n, nil
}

// SystemdSockets takes over the listening sockets that systemd passed to the process, by name.
func SystemdSockets(pid int, getenv func(string) string) (map[string][]net.Listener, error) {
	return inbound.SystemdSockets(pid, getenv)
}
