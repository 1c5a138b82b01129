package smtpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"understudy/internal/mta"
)

const (
	maxAddrs     = 10                     // of one host; a DNS answer must not keep us busy for an hour
	stagger      = 250 * time.Millisecond // until the next address is tried beside the last (RFC 8305, 5)
	clientLimit  = time.Minute            // the primary may look up the client's names: one that stalls must not hold up others
	quitPatience = 5 * time.Second        // the mail is settled by then, so the reply to QUIT is a courtesy
)

// Timeouts limits each step. A zero value stands for the default, which is the least that RFC 5321, 4.5.3.2 asks for.
type Timeouts struct {
	Lookup  time.Duration // 30 s
	Dial    time.Duration // 30 s, for each address
	Banner  time.Duration // 5 min
	EHLO    time.Duration // 5 min; RSET too. XCLIENT, and the EHLO after it, have a minute at most
	TLS     time.Duration // 2 min, the STARTTLS reply and the handshake
	Mail    time.Duration // 5 min
	Rcpt    time.Duration // 5 min
	Data    time.Duration // 2 min, until the 354
	Block   time.Duration // 3 min, for each block of content written
	Final   time.Duration // 10 min, from the end of the content, or from the reply before
	Overall time.Duration // for Dial as a whole; 0: the sum of its steps
}

func (t Timeouts) of(s Step) time.Duration {
	switch s {
	case StepLookup:
		return or(t.Lookup, 30*time.Second)
	case StepDial:
		return or(t.Dial, 30*time.Second)
	case StepBanner:
		return or(t.Banner, 5*time.Minute)
	case StepSTARTTLS:
		return or(t.TLS, 2*time.Minute)
	case StepXCLIENT:
		return min(clientLimit, or(t.EHLO, clientLimit))
	case StepMAIL:
		return or(t.Mail, 5*time.Minute)
	case StepRCPT:
		return or(t.Rcpt, 5*time.Minute)
	case StepDATA:
		return or(t.Data, 2*time.Minute)
	case StepBody:
		return or(t.Block, 3*time.Minute)
	case StepFinal:
		return or(t.Final, 10*time.Minute)
	case StepQUIT:
		return quitPatience
	}
	return or(t.EHLO, 5*time.Minute)
}

func or(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// Dialer opens sessions. It is not changed by use; Hostname is required.
type Dialer struct {
	Hostname string // our own name for EHLO
	// Lookup gives the addresses of a host, best first. Without it only hosts that are IP addresses can be dialled.
	Lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	Source   []netip.Addr // addresses to connect from, at most one a family
	Timeouts Timeouts
	// TLSA gives the TLSA records of a host and port, and whether they are authentic. Only TLSDANE needs it.
	TLSA func(ctx context.Context, host string, port uint16) (records []TLSA, authentic bool, err error)
	// Net makes connections; nil is the network.
	Net func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Options are what a session with one primary wants. The zero value goes all the way, with opportunistic TLS.
type Options struct {
	Stop Step // the last step to take: StepDial, StepBanner, StepEHLO or StepSTARTTLS; StepNone: all
	LMTP bool // speak LMTP (RFC 2033)
	TLS  TLSPolicy
	// Client is who gave us the mail that will be sent: the primary is told, by XCLIENT where it grants that to us, or by a
	// PROXY header where Proxy is set. It must be Conveyable and no address of ours; the Dialer does not check.
	Client *mta.Peer
	Proxy  bool
	// ClientOnly makes it an error (ErrClient) that the primary turns the client away, in place of a session that speaks for
	// nobody.
	ClientOnly bool
}

// wants reports whether step s is to be taken.
func (o *Options) wants(s Step) bool { return o.Stop == StepNone || s <= o.Stop }

// Dial opens a session with p: connected, banner read, EHLO said, STARTTLS where it is offered. Any error but the
// context's is an *Error.
func (d *Dialer) Dial(ctx context.Context, p mta.Primary) (*Conn, error) {
	return d.DialWith(ctx, p, Options{})
}

// DialWith opens a session as o wants it. All addresses of the host are tried until one gives a session; the error is
// that of the one that came furthest.
func (d *Dialer) DialWith(ctx context.Context, p mta.Primary, o Options) (*Conn, error) {
	if d.Timeouts.Overall > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeouts.Overall)
		defer cancel()
	}
	var trace []StepFact
	addrs, err := d.lookup(ctx, p, &trace)
	if err == nil && o.TLS.Mode == TLSDANE {
		o.TLS, err = d.resolveDANE(ctx, p.Host, p.Port, o.TLS)
	}
	if err != nil {
		return nil, &Error{Step: StepLookup, Err: err, Trace: trace}
	}
	var worst *Error
	for len(addrs) > 0 {
		won, lost := d.race(ctx, addrs)
		addrs = addrs[len(lost):]
		for _, l := range lost {
			trace = append(trace, StepFact{Step: StepDial, Addr: l.addr, Took: l.took, Err: l.err})
			worst = further(worst, &Error{Step: StepDial, Addr: l.addr, Err: l.err})
		}
		if won.nc == nil {
			break
		}
		addrs = without(addrs, won.addr)
		trace = append(trace, StepFact{Step: StepDial, Addr: won.addr, Took: won.took})
		c, err := d.session(ctx, p, o, won, &trace)
		if err == nil {
			return c, nil
		}
		worst = further(worst, err)
		if ctx.Err() != nil {
			break
		}
	}
	worst.Trace = trace
	return nil, worst
}

func further(a, b *Error) *Error {
	if a == nil || b.Step > a.Step {
		return b
	}
	return a
}

func without(addrs []netip.AddrPort, a netip.AddrPort) []netip.AddrPort {
	var rest []netip.AddrPort
	for _, x := range addrs {
		if x != a {
			rest = append(rest, x)
		}
	}
	return rest
}

// lookup gives the addresses to try, in order, families by turns.
func (d *Dialer) lookup(ctx context.Context, p mta.Primary, trace *[]StepFact) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(p.Host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, p.Port)}, nil
	}
	if d.Lookup == nil {
		return nil, fmt.Errorf("no resolver to find %s", p.Host)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, d.Timeouts.of(StepLookup))
	defer cancel()
	found, err := d.Lookup(ctx, p.Host)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s has no addresses", p.Host)
	}
	*trace = append(*trace, StepFact{Step: StepLookup, Took: time.Since(start), Err: err})
	return interleave(found, p.Port), err
}

// interleave keeps the resolver's order within a family and lets the families take turns, IPv6 first (RFC 8305, 4), so
// that a dead family costs one stagger.
func interleave(found []netip.Addr, port uint16) []netip.AddrPort {
	var six, four, all []netip.AddrPort
	for _, a := range found {
		a = a.Unmap()
		if a.Is6() {
			six = append(six, netip.AddrPortFrom(a, port))
			continue
		}
		four = append(four, netip.AddrPortFrom(a, port))
	}
	for len(all) < maxAddrs && len(six)+len(four) > 0 {
		if len(six) > 0 {
			all, six = append(all, six[0]), six[1:]
		}
		if len(four) > 0 {
			all, four = append(all, four[0]), four[1:]
		}
	}
	return all
}

// dialled is one try to connect.
type dialled struct {
	addr netip.AddrPort
	nc   net.Conn
	err  error
	took time.Duration
}

// race connects to the addresses, each a little later than the one before it or as soon as that failed, and takes the
// first that answers. The lost are those before the winner in the order, which is to say: all if none won.
func (d *Dialer) race(ctx context.Context, addrs []netip.AddrPort) (won dialled, lost []dialled) {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan dialled)
	next := time.NewTimer(stagger)
	defer next.Stop()
	failed := make(map[netip.AddrPort]dialled)
	started, running := 0, 0
	start := func() {
		if started == len(addrs) {
			return
		}
		go func(a netip.AddrPort) { results <- d.connect(ctx, a) }(addrs[started])
		started++
		running++
		next.Reset(stagger)
	}
	for start(); won.nc == nil && running > 0; {
		select {
		case <-next.C:
			start()
		case r := <-results:
			running--
			if r.err == nil {
				won = r
				break
			}
			failed[r.addr] = r
			start()
		}
	}
	cancel()
	for ; running > 0; running-- {
		if r := <-results; r.nc != nil { // a close second
			r.nc.Close()
		}
	}
	for _, a := range addrs[:started] {
		f, ok := failed[a]
		if !ok {
			break
		}
		lost = append(lost, f)
	}
	return won, lost
}

func (d *Dialer) connect(ctx context.Context, a netip.AddrPort) dialled {
	ctx, cancel := context.WithTimeout(ctx, d.Timeouts.of(StepDial))
	defer cancel()
	start := time.Now()
	nc, err := d.dialNet(ctx, a)
	return dialled{addr: a, nc: nc, err: err, took: time.Since(start)}
}

func (d *Dialer) dialNet(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	if d.Net != nil {
		return d.Net(ctx, "tcp", a.String())
	}
	var nd net.Dialer
	for _, s := range d.Source {
		if s.Is4() == a.Addr().Is4() {
			nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s, 0))
		}
	}
	return nd.DialContext(ctx, "tcp", a.String())
}

// session takes a connection to where mail can be sent. What can be done without costs another connection, since the
// first is in no state that can be known: TLS that fails under a policy that allows clear text, and a client that the
// primary does not like.
func (d *Dialer) session(ctx context.Context, p mta.Primary, o Options, at dialled, trace *[]StepFact) (*Conn, *Error) {
	c, err := d.open(ctx, p, o, at, trace)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	first := err
	noTLS := errors.Is(err, errHandshake) && o.TLS.mayClear()
	switch {
	case noTLS:
		o.TLS = TLSPolicy{Mode: TLSOff}
	case errors.Is(err, ErrClient) && !o.ClientOnly:
		o.Client = nil
	default:
		return nil, err
	}
	again := d.connect(ctx, at.addr)
	*trace = append(*trace, StepFact{Step: StepDial, Addr: at.addr, Took: again.took, Err: again.err})
	if again.err != nil {
		return nil, &Error{Step: StepDial, Addr: at.addr, Err: again.err}
	}
	if c, err = d.open(ctx, p, o, again, trace); err != nil {
		return nil, err
	}
	if noTLS {
		c.tlsErr = first
	} else {
		c.clientErr = first
	}
	return c, nil
}

// open says all that comes before the first MAIL. A failure closes the connection.
func (d *Dialer) open(ctx context.Context, p mta.Primary, o Options, at dialled, trace *[]StepFact) (*Conn, *Error) {
	c := newConn(d, p, o, at)
	defer func() { *trace = append(*trace, c.trace...); c.trace = append([]StepFact(nil), *trace...) }()
	err := c.greet(ctx, o)
	if err == nil {
		return c, nil
	}
	c.Close()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Step: StepNone, Addr: at.addr, Err: err}
	}
	return nil, e
}
