package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/internal/mta"
	"understudy/policy"
	"understudy/spool"
)

// Spool is what the API needs of the spool, whatever its engine.
type Spool interface {
	Put(ctx context.Context, env *mta.Envelope, body io.Reader) error
	Body(ctx context.Context, id mta.ID) (io.ReadCloser, error)
	Get(ctx context.Context, id mta.ID) ([]spool.Item, error)
	List(ctx context.Context, q spool.Query) ([]spool.Item, string, error)
	Apply(ctx context.Context, op spool.Op, due time.Time, k ...spool.Key) (int, error)
	ApplyWhere(ctx context.Context, q spool.Query, op spool.Op, due time.Time, progress func(done int)) (int, error)
	Stats(ctx context.Context) ([]spool.DestStats, error)
	Usage(ctx context.Context) (spool.Usage, error)
	Ready(ctx context.Context) error
}

// Store is what the engine with files of its own can do besides.
type Store interface {
	Verify(ctx context.Context, progress func(done, total int)) (*spool.Verification, error)
	Backup(ctx context.Context, w io.Writer, progress func(done, total int)) (*spool.Transfer, error)
	Restore(ctx context.Context, r io.Reader, progress func(done int)) (*spool.Transfer, error)
}

// Health is what the API needs of the prober.
type Health interface {
	Status() []healthprobe.PrimaryStatus
	Domains() []healthprobe.DomainStatus
	Route(ctx context.Context, domain string) (mta.Route, error)
	Open(primary string) bool
	Hint(domain string)
	Override(ctx context.Context, o healthprobe.Override) error
	EndOverride(ctx context.Context, kind healthprobe.OverrideKind, subject string) (bool, error)
	Overrides() []healthprobe.Override
	Outages(q healthprobe.OutageQuery) []healthprobe.Outage
}

// Forwarder is what the API needs of the outbound side.
type Forwarder interface {
	Flush(ctx context.Context, dest string, id mta.ID)
	Resume(primary string) bool
	Primaries() []forwarder.PrimaryStatus
}

// Recipients is what the API needs of policy.
type Recipients interface {
	Lookup(ctx context.Context, to mta.Path) (policy.Answer, error)
	Sources() []policy.SourceStatus
	Refresh(ctx context.Context, name string) error
	Confirm(ctx context.Context, name, domain string) error
}

// Deps is what the API speaks for.
type Deps struct {
	Hostname, Version string
	Domains           func() []string // the configured ones, as of now
	Spool             Spool
	Store             Store // nil: the engine has no files of its own
	Health            Health
	Forwarder         Forwarder
	Recipients        Recipients
	Parity            Parity // nil: nothing is compared
	Reload            func(ctx context.Context) (Reloaded, error)
	Alarms            func() []mta.Event    // that are on now
	Helpers           func() []HelperStatus // nil: there are none
	Gatherer          prometheus.Gatherer
	Log               *slog.Logger
}

// Server serves the API.
type Server struct {
	cfg     Config
	deps    Deps
	started time.Time
	tokens  tokens
	unix    net.Listener
	tcp     net.Listener // nil if off
}

// New makes a server. It listens on nothing yet.
func New(cfg Config, deps Deps) *Server {
	return &Server{cfg: cfg, deps: deps, started: time.Now()}
}

// Listen binds the socket, and TCP if configured. A socket that a crash left behind is replaced; one that somebody
// answers on is not.
func (s *Server) Listen() error {
	if s.cfg.Listen != "" {
		tokens, err := readTokens(s.cfg)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		s.tokens = tokens
	}
	unix, err := listenUnix(s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	s.unix = unix
	if s.cfg.Listen == "" {
		return nil
	}
	s.tcp, err = net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		unix.Close()
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// listenUnix makes the socket with mode 0600 from its first moment: it is bound under a name of its own, restricted,
// and moved into place.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another understudy answers on it", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its name changes below
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, err
	}
	return l, nil
}

// Addr is the TCP listener's address, nil if it is off.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Limits of the HTTP side: an operator's client is quick, or it is something else.
const (
	headerTimeout = 10 * time.Second
	stopTimeout   = 2 * time.Second
	maxBody       = 64 << 10
)

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	api := s.mux()
	g, ctx := errgroup.WithContext(ctx)
	s.serve(ctx, g, s.unix, api)
	if s.tcp != nil {
		s.serve(ctx, g, s.tcp, s.authenticate(api))
	}
	err := g.Wait()
	os.Remove(s.cfg.Socket)
	return err
}

func (s *Server) serve(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ConnContext:       whoAsks,
		ErrorLog:          slog.NewLogLogger(s.deps.Log.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("admin: serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			srv.Close()
		}
		return nil
	})
}

func (s *Server) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.deps.Gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/queue", s.queue)
	mux.HandleFunc("GET /v1/queue/{id}", s.message)
	mux.HandleFunc("GET /v1/queue/{id}/content", s.content)
	mux.HandleFunc("POST /v1/queue/{op}", s.operate)
	mux.HandleFunc("POST /v1/flush", s.flush)
	mux.HandleFunc("POST /v1/reload", s.reload)
	mux.HandleFunc("GET /v1/primaries", s.primaries)
	mux.HandleFunc("POST /v1/probe", s.probe)
	mux.HandleFunc("POST /v1/domains/{domain}/recovered", s.recovered)
	mux.HandleFunc("POST /v1/resume", s.resume)
	mux.HandleFunc("GET /v1/recipients/{address}", s.recipient)
	mux.HandleFunc("GET /v1/sources", s.sources)
	mux.HandleFunc("POST /v1/sources/{op}", s.operateSource)
	mux.HandleFunc("GET /v1/overrides", s.overrides)
	mux.HandleFunc("POST /v1/overrides", s.override)
	mux.HandleFunc("DELETE /v1/overrides", s.endOverride)
	mux.HandleFunc("GET /v1/outages", s.outages)
	mux.HandleFunc("GET /v1/parity", s.parity)
	mux.HandleFunc("GET /v1/alarms", s.alarms)
	mux.HandleFunc("GET /v1/spool", s.usage)
	mux.HandleFunc("POST /v1/spool/verify", s.verify)
	mux.HandleFunc("GET /v1/spool/backup", s.backup)
	mux.HandleFunc("POST /v1/spool/restore", s.restore)
	return mux
}
