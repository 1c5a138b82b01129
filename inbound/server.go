package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"understudy/internal/mta"
)

// Spool keeps messages.
type Spool interface {
	// Put returns nil only once env and all of body are on stable storage. An error of body aborts it and leaves nothing.
	Put(ctx context.Context, env *mta.Envelope, body io.Reader) error
	// Room returns an error, mostly a *mta.Reply, if a message of size octets (0: unknown) for dest can't be taken now.
	Room(ctx context.Context, dest string, size int64) error
}

// Deps are what a Server needs from the other parts. Spool and Policy are required.
type Deps struct {
	Spool  Spool
	Policy Policy
	Judge  Judge                                          // may be nil: all mail is spooled, unjudged
	Relay  Relay                                          // may be nil: no mail goes inline
	Names  func(ctx context.Context, a netip.Addr) string // the forward-confirmed reverse name, or ""

	// Recovered starts a probe of a domain's primaries and, if they are well, its drain (ETRN). A *mta.Reply in the
	// error is the answer, also a positive one (251–253). Without Recovered, ETRN is not offered.
	Recovered func(ctx context.Context, domain string) error
	Primaries func(domain string) []netip.Addr // whose ETRN is obeyed; may be nil
	Domains   func() []string                  // the domains that we back up, in the form of mta.Domain; for ETRN @domain

	Bounds    func(domain string) mta.Bounds // what the domain's primaries can take; may be nil
	Connected func(a netip.Addr)             // hears of every client: it may be a primary that is back; may be nil

	Sockets map[string][]net.Listener // passed by systemd, by name (see SystemdSockets)

	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Server takes mail from senders.
type Server struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	gate    *gate
	certs   *certificates
	smtp    *smtp.Server
	hard    context.Context // what has begun to be stored goes on until this ends
	stop    context.CancelFunc
	closing atomic.Bool   // no new commands
	closed  chan struct{} // closed when closing is set
	chunks  atomic.Int64  // of memory that bodies use
	files   atomic.Int64  // octets of bodies in files
	loans   chan struct{} // one for each body that the judge reads after its transaction

	listeners []*listener // set by Listen

	mu    sync.Mutex
	wires map[*wire]struct{}
}

// New makes a Server. It does no I/O.
func New(cfg Config, d Deps) (*Server, error) {
	if faults := cfg.Validate(); len(faults) > 0 {
		return nil, fmt.Errorf("inbound: %s: %s", faults[0].Key, faults[0].Text)
	}
	if d.Spool == nil || d.Policy == nil {
		return nil, errors.New("inbound: a spool and a policy are required")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Metrics == nil {
		d.Metrics = prometheus.NewRegistry()
	}
	if cfg.TempDir == "" {
		cfg.TempDir = os.TempDir()
	}
	s := &Server{
		cfg: cfg, deps: d, log: d.Log, metrics: newMetrics(d.Metrics), gate: newGate(&cfg, maxFiles()),
		closed: make(chan struct{}), loans: make(chan struct{}, maxLoans), wires: map[*wire]struct{}{},
	}
	s.hard, s.stop = context.WithCancel(context.Background())
	s.smtp = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.smtp.Domain = cfg.Hostname
	s.smtp.MaxRecipients = cfg.MaxRecipients
	s.smtp.MaxLineLength = 0 // lines are the wire's business, and so are sizes and time limits
	s.smtp.ErrorLog = &errorLog{log: d.Log, often: rate.Sometimes{First: 10, Interval: time.Second}}
	return s, nil
}

// base is the context of what must not end with a client's connection.
func (s *Server) base() context.Context { return s.hard }

// Run serves until ctx is done. Then it accepts nobody, tells idle clients 421, lets messages in progress end within
// Config.ShutdownGrace and returns nil. What it started has ended by then.
func (s *Server) Run(ctx context.Context) error {
	if s.listeners == nil {
		return errors.New("inbound: Run before Listen")
	}
	defer s.stop()
	g, gctx := errgroup.WithContext(ctx)
	var serving sync.WaitGroup
	for _, l := range s.listeners {
		serving.Add(1)
		g.Go(func() error {
			defer serving.Done()
			if err := s.smtp.Serve(l); err != nil && !s.closing.Load() {
				return fmt.Errorf("inbound: serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error { return s.certs.run(gctx) })
	g.Go(func() error {
		<-gctx.Done()
		s.shutdown(&serving)
		return nil
	})
	return g.Wait()
}

// shutdown returns when the last connection has ended.
func (s *Server) shutdown(serving *sync.WaitGroup) {
	s.closing.Store(true)
	close(s.closed)
	for _, l := range s.listeners {
		l.Close()
	}
	serving.Wait() // from here on no connection begins
	s.each((*wire).poke)
	grace, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownGrace)
	defer cancel()
	done := make(chan struct{})
	go func() {
		s.smtp.Shutdown(context.Background()) // its error is that the listeners are closed already
		close(done)
	}()
	select {
	case <-done:
	case <-grace.Done():
		s.log.Warn("connections cut at shutdown", "connections", s.connections())
		s.each((*wire).kill)
		s.stop()
		<-done
	}
	for range maxLoans {
		select {
		case s.loans <- struct{}{}:
		case <-grace.Done(): // what is still lent closes itself
			return
		}
	}
}

// maxLoans bounds the bodies that the judge may hold beyond their transactions.
const maxLoans = 256

// lend gives a body that the primary has judged to our own judge, who may read it longer than the transaction lasts. False: it
// stays the caller's to close.
func (s *Server) lend(env *mta.Envelope, b *body, final mta.Reply) bool {
	if s.closing.Load() {
		return false
	}
	select {
	case s.loans <- struct{}{}:
	default:
		return false
	}
	lent := s.deps.Judge.Shadow(env, b.content(), final, func() {
		b.Close()
		<-s.loans
	})
	if !lent {
		<-s.loans
	}
	return lent
}

// wait lets a client wait, but not a shutdown.
func (s *Server) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closed:
	}
}

// trusts tells whether the limits per client do not apply.
func (s *Server) trusts(a netip.Addr) bool { return contains(s.cfg.Trusted, a) }

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// maxFiles is how many files this process may have open.
func maxFiles() uint64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return math.MaxUint64
	}
	return limit.Cur
}

// admit takes a client's place at the gate; leave gives it back, and is never nil.
func (s *Server) admit(remote netip.AddrPort) (leave func(), refusal *mta.Reply) {
	a, trusted := remote.Addr(), s.trusts(remote.Addr())
	reason, refusal := s.gate.enter(a, trusted, time.Now())
	if refusal != nil {
		s.metrics.refused.WithLabelValues(reason).Inc()
		s.log.Info("connection refused", "peer", remote, "reason", reason)
		return func() {}, refusal
	}
	return func() { s.gate.leave(a, trusted) }, nil
}

func (s *Server) remember(w *wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wires[w] = struct{}{}
	s.metrics.open.Inc()
}

func (s *Server) forget(w *wire) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wires, w)
	s.metrics.open.Dec()
}

func (s *Server) each(f func(*wire)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.wires {
		f(w)
	}
}

func (s *Server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.wires)
}

// errorLog takes what go-smtp logs. A client can make it log at will, so only some of it is kept.
type errorLog struct {
	log   *slog.Logger
	often rate.Sometimes
}

func (l *errorLog) Printf(format string, v ...any) { l.print(fmt.Sprintf(format, v...)) }
func (l *errorLog) Println(v ...any)               { l.print(fmt.Sprintln(v...)) }

func (l *errorLog) print(text string) {
	l.often.Do(func() { l.log.Error("smtp library", "err", text) })
}
