package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// minToken is the shortest bearer token that we take: 16 characters of anything better than words are out of reach.
const minToken = 16

// ReadToken reads a bearer token from a file; blanks around it do not count.
func ReadToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken {
		return "", fmt.Errorf("read the token: %s: a token has at least %d characters", path, minToken)
	}
	return token, nil
}

// tokens are kept hashed, so that comparing takes the same time for any length.
type tokens struct {
	all  [sha256.Size]byte // opens everything
	hint [sha256.Size]byte // opens the recovery hint; zero, which is no token's hash: there is none
}

func readTokens(cfg Config) (tokens, error) {
	var t tokens
	all, err := ReadToken(cfg.TokenFile)
	if err != nil {
		return t, err
	}
	t.all = sha256.Sum256([]byte(all))
	if cfg.HintTokenFile == "" {
		return t, nil
	}
	hint, err := ReadToken(cfg.HintTokenFile)
	if err != nil {
		return t, err
	}
	t.hint = sha256.Sum256([]byte(hint))
	return t, nil
}

// opens reports whether a request may pass.
func (t *tokens) opens(r *http.Request) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(given))
	all := subtle.ConstantTimeCompare(sum[:], t.all[:]) == 1
	hint := subtle.ConstantTimeCompare(sum[:], t.hint[:]) == 1 && isHint(r)
	return ok && (all || hint)
}

func isHint(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/v1/domains/") && strings.HasSuffix(r.URL.Path, "/recovered")
}

// authenticate wants a bearer token, but for the two health checks, which tell nothing.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" && r.URL.Path != "/readyz" && !s.tokens.opens(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeError(w, http.StatusUnauthorized, errors.New("a bearer token is needed"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

type askerKey struct{}

// whoAsks notes who is at the other end of a connection, for the log of what operators do: the user of a unix socket,
// the address of TCP.
func whoAsks(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, askerKey{}, asker(c))
}

func asker(c net.Conn) string {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return c.RemoteAddr().String()
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return "unix"
	}
	who := "unix"
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = fmt.Sprintf("uid %d", cred.Uid)
		}
	})
	return who
}

// by is who asked for what a context belongs to.
func by(ctx context.Context) string {
	who, _ := ctx.Value(askerKey{}).(string)
	return who
}
