package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"understudy/healthprobe"
	"understudy/internal/mta"
	"understudy/spool"
)

// Spool is what the API needs of the spool.
type Spool interface {
	Get(ctx context.Context, id mta.ID) ([]spool.Item, error)
	List(ctx context.Context, q spool.Query) ([]spool.Item, string, error)
	Stats(ctx context.Context) ([]spool.DestStats, error)
	Ready(ctx context.Context) error
}

// Health is what the API needs of the prober.
type Health interface {
	Status() []healthprobe.PrimaryStatus
	Route(ctx context.Context, domain string) (mta.Route, error)
	Open(primary string) bool
	Hint(domain string)
}

// Forwarder is what the API needs of the outbound side.
type Forwarder interface {
	Flush(ctx context.Context, dest string, id mta.ID)
}

// Deps is what the API speaks for.
type Deps struct {
	Hostname, Version string
	Domains           func() []string // the configured ones, as of now
	Spool             Spool
	Health            Health
	Forwarder         Forwarder
	Reload            func(ctx context.Context) (needRestart []string, err error)
	Gatherer          prometheus.Gatherer
	Log               *slog.Logger
}

// Server serves the API.
type Server struct {
	cfg     Config
	deps    Deps
	started time.Time
	token   [sha256.Size]byte // of the bearer token; hashed, so that comparing takes the same time for any length
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
		token, err := ReadToken(s.cfg.TokenFile)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		s.token = sha256.Sum256([]byte(token))
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
		Handler:           http.MaxBytesHandler(h, maxBody),
		ReadHeaderTimeout: headerTimeout,
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
	mux.HandleFunc("POST /v1/flush", s.flush)
	mux.HandleFunc("POST /v1/reload", s.reload)
	return mux
}

// authenticate wants the bearer token, but for the two health checks, which tell nothing.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 || !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeError(w, http.StatusUnauthorized, errors.New("a bearer token is needed"))
			return
		}
		next.ServeHTTP(w, r)
	})
}
