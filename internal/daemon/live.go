package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/internal/config"
	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/spool"
)

// liveAtOnce is how many primaries are tried at the same time.
const liveAtOnce = 8

// Live is what the domains and their primaries showed when they were looked at as a delivery would.
type Live struct {
	Hostname string       `json:"hostname"`
	Domains  []LiveDomain `json:"domains"`
}

// LiveDomain is one domain. Faults want to be mended, Notes are worth to know.
type LiveDomain struct {
	Domain    string        `json:"domain"`
	Primaries []LivePrimary `json:"primaries,omitempty"`
	Faults    []string      `json:"faults,omitempty"`
	Notes     []string      `json:"notes,omitempty"`
}

// LivePrimary is one primary of a domain.
type LivePrimary struct {
	Primary    string   `json:"primary"`
	TLS        string   `json:"tls,omitempty"`        // "TLS 1.3", "none"
	Client     string   `json:"client,omitempty"`     // how it learns who the client was: xclient, proxy_v2, headers
	Size       int64    `json:"size,omitempty"`       // octets that it takes; 0: no limit was stated
	Offers     []string `json:"offers,omitempty"`     // of its last EHLO, what matters to us
	Postmaster string   `json:"postmaster,omitempty"` // its reply to RCPT for postmaster of the domain
	Faults     []string `json:"faults,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

// Faulty reports that something wants to be mended.
func (l *Live) Faulty() bool {
	for _, d := range l.Domains {
		if len(d.Faults) > 0 || slices.ContainsFunc(d.Primaries, func(p LivePrimary) bool { return len(p.Faults) > 0 }) {
			return true
		}
	}
	return false
}

// live has what the daemon would use, and nothing that runs.
type live struct {
	cfg      *config.Config
	resolver *dnsx.Resolver
	prober   *healthprobe.Prober
	fwd      *forwarder.Forwarder
	dialer   *smtpc.Dialer
	slots    chan struct{}
	limit    time.Duration
}

// CheckLive asks the DNS about each domain and tries each of its primaries as a delivery would begin; nothing is sent.
// limit is the longest that one primary may take. The error is that this can't be done at all.
func CheckLive(ctx context.Context, cfg *config.Config, limit time.Duration) (*Live, error) {
	l := &live{cfg: cfg, slots: make(chan struct{}, liveAtOnce), limit: limit}
	if err := l.build(); err != nil {
		return nil, err
	}
	report := &Live{Hostname: cfg.Hostname}
	for name := range cfg.Domains {
		report.Domains = append(report.Domains, LiveDomain{Domain: name})
	}
	slices.SortFunc(report.Domains, func(a, b LiveDomain) int { return strings.Compare(a.Domain, b.Domain) })
	var all sync.WaitGroup
	for i := range report.Domains {
		all.Go(func() { l.domain(ctx, &report.Domains[i]) })
	}
	all.Wait()
	return report, ctx.Err()
}

func (l *live) build() error {
	var err error
	if l.resolver, err = dnsx.New(l.cfg.DNS); err != nil {
		return err
	}
	l.dialer = &smtpc.Dialer{Hostname: l.cfg.Hostname, Lookup: l.resolver.LookupAddrs, TLSA: tlsaOf(l.resolver)}
	for _, s := range l.cfg.Forwarder.Source { // a primary may trust that address alone
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		l.dialer.Source = append(l.dialer.Source, a)
	}
	quiet := slog.New(slog.DiscardHandler)
	l.prober, err = healthprobe.New(l.cfg.Healthprobe, l.cfg.HealthprobeDomains(), healthprobe.Deps{Dialer: l.dialer, Resolver: l.resolver, Log: quiet})
	if err != nil {
		return err
	}
	l.fwd, err = forwarder.New(l.cfg.Forwarder, l.cfg.ForwarderDomains(), forwarder.Deps{
		Queue: spool.NewMemory(), Routes: l.prober, Health: l.prober, Dialer: l.dialer, STS: &forwarder.STS{TXT: l.resolver.LookupTXT}, Log: quiet,
	})
	return err
}

// do runs f when it is its turn, with the limit of one try.
func (l *live) do(ctx context.Context, f func(context.Context)) {
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	f(ctx)
}

// domain looks at one domain and all its primaries.
func (l *live) domain(ctx context.Context, d *LiveDomain) {
	var route mta.Route
	var err error
	l.do(ctx, func(ctx context.Context) {
		route, err = l.prober.Route(ctx, d.Domain)
		l.mx(ctx, d)
	})
	if err != nil {
		d.Faults = append(d.Faults, "its primaries can't be looked up: "+err.Error())
		return
	}
	if st, ok := l.prober.Domain(d.Domain); ok && len(d.Faults) == 0 { // else they say the same
		d.Notes = append(d.Notes, st.Notes...)
	}
	if len(route.Tiers) == 0 {
		d.Faults = append(d.Faults, "it has no primary: mail for it would wait for ever")
	}
	for _, p := range slices.Concat(route.Tiers...) {
		d.Primaries = append(d.Primaries, LivePrimary{Primary: p.String()})
	}
	var all sync.WaitGroup
	for i, p := range slices.Concat(route.Tiers...) {
		all.Go(func() { l.do(ctx, func(ctx context.Context) { l.primary(ctx, d.Domain, p, &d.Primaries[i]) }) })
	}
	all.Wait()
}

// mx holds the domain's MX records against what a backup needs: that they name us, and something better than us.
func (l *live) mx(ctx context.Context, d *LiveDomain) {
	mxs, err := l.resolver.LookupMX(ctx, d.Domain)
	switch {
	case errors.Is(err, dnsx.ErrNotFound):
		d.Faults = append(d.Faults, "it has no MX records: senders never come here")
		return
	case err != nil:
		d.Notes = append(d.Notes, "its MX records can't be looked up: "+err.Error())
		return
	case mxs.Null:
		return // the route says so
	}
	us := slices.IndexFunc(mxs.Hosts, func(m dnsx.MX) bool { return m.Host == l.cfg.Hostname })
	switch {
	case us < 0:
		d.Faults = append(d.Faults, fmt.Sprintf("its MX records do not name %s: senders never come here", l.cfg.Hostname))
	case mxs.Hosts[us].Pref <= mxs.Hosts[0].Pref:
		d.Faults = append(d.Faults, fmt.Sprintf("no mail exchanger is better than %s: senders come here first", l.cfg.Hostname))
	case us < len(mxs.Hosts)-1 && mxs.Hosts[us+1].Pref > mxs.Hosts[us].Pref:
		d.Notes = append(d.Notes, fmt.Sprintf("%s is worse than this host: who can reach neither a primary nor us goes there", mxs.Hosts[us+1].Host))
	}
}

// primary begins a delivery and ends it before anything is sent.
func (l *live) primary(ctx context.Context, domain string, p mta.Primary, out *LivePrimary) {
	o := l.fwd.Options(domain)
	conn, err := l.dialer.DialWith(ctx, p, o)
	if err != nil {
		out.Faults = append(out.Faults, trouble(err))
		return
	}
	defer conn.Close()
	l.session(domain, conn, &o, out)
	if _, err := conn.Mail(ctx, mta.Path{}); err != nil {
		out.Faults = append(out.Faults, trouble(err))
		return
	}
	reply, err := conn.Rcpt(ctx, mta.Path{Local: "postmaster", Domain: domain})
	out.Postmaster = reply.String()
	if err != nil {
		out.Faults = append(out.Faults, trouble(err)+": mail to postmaster must be taken (RFC 5321, 4.5.1)")
	}
	if _, err := conn.Reset(ctx); err == nil {
		conn.Quit(ctx) // whatever it says, we know what we came for
	}
}

// session tells what a session that was opened is like.
func (l *live) session(domain string, conn *smtpc.Conn, o *smtpc.Options, out *LivePrimary) {
	note := func(format string, args ...any) { out.Notes = append(out.Notes, fmt.Sprintf(format, args...)) }
	caps := conn.Caps()
	switch state := conn.TLS(); {
	case state != nil:
		out.TLS = tls.VersionName(state.Version)
	case conn.TLSError() != nil:
		out.TLS = "failed"
		note("TLS failed, so mail goes in clear: %v", conn.TLSError())
	default:
		out.TLS = "none"
		note("it offers no TLS, so mail goes in clear")
	}
	l.client(domain, caps, o, out)
	out.Size = caps.SizeLimit
	if most := int64(l.cfg.Inbound.MaxMessageSize); caps.SizeLimit > 0 && caps.SizeLimit < most {
		note("it takes messages of up to %s, and inbound.max_message_size is %s: larger ones are refused here once it was probed", mta.Size(caps.SizeLimit), mta.Size(most))
	}
	for _, c := range []struct {
		has  bool
		name string
	}{
		{caps.Pipelining, "PIPELINING"}, {caps.Chunking, "CHUNKING"}, {caps.EightBitMIME, "8BITMIME"}, {caps.SMTPUTF8, "SMTPUTF8"}, {caps.DSN, "DSN"}, {caps.RequireTLS, "REQUIRETLS"},
	} {
		if c.has {
			out.Offers = append(out.Offers, c.name)
		}
	}
	switch {
	case !caps.Pipelining:
		note("it offers no PIPELINING: a drain waits for each command")
	case !caps.Chunking && !o.LMTP:
		note("it offers no CHUNKING: a drain waits for each message")
	}
	if !caps.EightBitMIME {
		note("it does not offer 8BITMIME: 8-bit mail for it is kept and not delivered")
	}
}

// client tells how the primary learns who sent the mail.
func (l *live) client(domain string, caps smtpc.Caps, o *smtpc.Options, out *LivePrimary) {
	identity := l.cfg.ForwarderDomains()[domain].ClientIdentity
	switch {
	case o.Proxy:
		out.Client = "proxy_v2"
	case identity == "headers":
		out.Client = "headers"
	case slices.Contains(caps.XCLIENT, "ADDR"):
		out.Client = "xclient"
	case identity == "xclient":
		out.Client = "headers"
		out.Faults = append(out.Faults, "it does not grant us XCLIENT, and client_identity is xclient: its rules see us instead of the sender")
	default:
		out.Client = "headers"
		out.Notes = append(out.Notes, "it does not grant us XCLIENT: unless its filters read our Received field, its rules see us instead of the sender (docs/primary)")
	}
}

// trouble is an error of a session, in the words of its step.
func trouble(err error) string {
	e, ok := errors.AsType[*smtpc.Error](err)
	switch {
	case ok && e.Reply != nil:
		return fmt.Sprintf("refused at %s: %s", e.Step, e.Reply)
	case ok && e.Err != nil:
		return fmt.Sprintf("failed at %s: %v", e.Step, e.Err)
	}
	return err.Error()
}
