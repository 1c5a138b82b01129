package forwarder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

const (
	stsTable   = "mta-sts"
	stsLimit   = 64 << 10 // RFC 8461, 3.3
	stsMaxAge  = 31557600 * time.Second
	stsAsk     = time.Hour // how long the TXT record is not asked for again
	stsTimeout = time.Minute
	stsMost    = 10_000 // domains in memory
)

// errSTS is why a primary gets no mail under a policy that is enforced.
var errSTS = errors.New("the domain's MTA-STS policy does not name this primary")

// STS knows the MTA-STS policies of domains (RFC 8461). A policy that was seen is kept for its time, whatever becomes of
// the DNS and the web server meanwhile; that is its point.
type STS struct {
	TXT    func(ctx context.Context, name string) ([]string, error)
	Client *http.Client // with its own roots; nil: the system's
	Keep   Keep         // over restarts; nil: in memory only

	mu    sync.Mutex
	known map[string]stsPolicy
}

// Keep is a small table that survives restarts.
type Keep interface {
	Get(ctx context.Context, ns, key string) (val []byte, rev uint64, err error)
	Put(ctx context.Context, ns, key string, val []byte, ttl time.Duration, ifRev *uint64) (rev uint64, err error)
}

// stsPolicy is one domain's. The zero policy is none.
type stsPolicy struct {
	ID    string    `json:"id"`
	Mode  string    `json:"mode"`
	MX    []string  `json:"mx"`
	Until time.Time `json:"until"`

	asked time.Time
}

func (p *stsPolicy) enforced(now time.Time) bool { return p.Mode == "enforce" && now.Before(p.Until) }

// names reports that the policy names the host (RFC 8461, 4.1): a pattern's asterisk stands for one label.
func (p *stsPolicy) names(host string) bool {
	_, parent, _ := strings.Cut(host, ".")
	for _, mx := range p.MX {
		if rest, wild := strings.CutPrefix(mx, "*."); mx == host || wild && rest == parent {
			return true
		}
	}
	return false
}

// policy gives a domain's policy. What can't be found out leaves the one that is known in force, or none.
func (s *STS) policy(ctx context.Context, domain string) stsPolicy {
	now := time.Now()
	known := s.recall(ctx, domain)
	if now.Sub(known.asked) < stsAsk {
		return known
	}
	if now.After(known.Until) {
		known = stsPolicy{}
	}
	known.asked = now
	fresh, err := s.find(ctx, domain, known)
	if err != nil {
		s.remember(domain, known)
		return known
	}
	fresh.asked = now
	s.remember(domain, fresh)
	if b, err := json.Marshal(fresh); err == nil && s.Keep != nil {
		s.Keep.Put(ctx, stsTable, domain, b, time.Until(fresh.Until), nil) // without it a restart asks anew
	}
	return fresh
}

func (s *STS) recall(ctx context.Context, domain string) stsPolicy {
	s.mu.Lock()
	p, ok := s.known[domain]
	s.mu.Unlock()
	if ok || s.Keep == nil {
		return p
	}
	if b, _, err := s.Keep.Get(ctx, stsTable, domain); err == nil {
		if json.Unmarshal(b, &p) != nil {
			return stsPolicy{}
		}
	}
	return p
}

func (s *STS) remember(domain string, p stsPolicy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= stsMost {
		s.known = make(map[string]stsPolicy)
	}
	s.known[domain] = p
}

// find asks the DNS whether there is a policy other than the known one, and fetches it.
func (s *STS) find(ctx context.Context, domain string, known stsPolicy) (stsPolicy, error) {
	ctx, cancel := context.WithTimeout(ctx, stsTimeout)
	defer cancel()
	records, err := s.TXT(ctx, "_mta-sts."+domain)
	if err != nil {
		return stsPolicy{}, err
	}
	id, err := stsID(records)
	if err != nil {
		return stsPolicy{}, err
	}
	if id == known.ID && time.Until(known.Until) > 24*time.Hour {
		return known, nil
	}
	p, err := s.fetch(ctx, domain)
	p.ID = id
	return p, err
}

// stsID reads the record (RFC 8461, 3.1); not exactly one is none.
func stsID(records []string) (string, error) {
	id, n := "", 0
	for _, r := range records {
		if !strings.HasPrefix(r, "v=STSv1;") {
			continue
		}
		n++
		for field := range strings.SplitSeq(r, ";") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(field), "id="); ok {
				id = v
			}
		}
	}
	if n != 1 || id == "" {
		return "", errors.New("no MTA-STS record")
	}
	return id, nil
}

// fetch gets the policy from the domain's web server, whose certificate must be valid. Redirects are not followed.
func (s *STS) fetch(ctx context.Context, domain string) (stsPolicy, error) {
	client := http.Client{}
	if s.Client != nil {
		client = *s.Client
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mta-sts."+domain+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return stsPolicy{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return stsPolicy{}, err
	}
	defer resp.Body.Close()
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "text/plain" || resp.StatusCode != http.StatusOK {
		return stsPolicy{}, fmt.Errorf("MTA-STS policy of %s: %s, %s", domain, resp.Status, kind)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, stsLimit))
	if err != nil {
		return stsPolicy{}, err
	}
	return parseSTS(string(b), time.Now())
}

// parseSTS reads a policy (RFC 8461, 3.2).
func parseSTS(text string, now time.Time) (stsPolicy, error) {
	var p stsPolicy
	version, age := "", int64(-1)
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "version":
			version = value
		case "mode":
			p.Mode = value
		case "mx":
			mx, err := mta.Domain(strings.TrimPrefix(value, "*."))
			if err != nil {
				return stsPolicy{}, fmt.Errorf("MTA-STS policy: %w", err)
			}
			if strings.HasPrefix(value, "*.") {
				mx = "*." + mx
			}
			p.MX = append(p.MX, mx)
		case "max_age":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return stsPolicy{}, errors.New("MTA-STS policy: max_age")
			}
			age = n
		}
	}
	known := p.Mode == "enforce" || p.Mode == "testing" || p.Mode == "none"
	if version != "STSv1" || !known || age < 0 || p.Mode != "none" && len(p.MX) == 0 {
		return stsPolicy{}, errors.New("MTA-STS policy: incomplete")
	}
	p.Until = now.Add(min(time.Duration(min(age, int64(stsMaxAge/time.Second)))*time.Second, stsMaxAge))
	return p, nil
}

// tlsTo is what a session with a primary of the route asks of TLS.
func (r *road) tlsTo(ctx context.Context, host string) (smtpc.TLSPolicy, error) {
	if r.dom.TLS != "mta-sts" {
		return r.tls, nil
	}
	p := r.f.sts.policy(ctx, r.domain)
	if !p.enforced(time.Now()) {
		return r.tls, nil
	}
	if !p.names(host) {
		return r.tls, &smtpc.Error{Step: smtpc.StepSTARTTLS, Err: errSTS}
	}
	t := r.tls
	t.Mode, t.Names = smtpc.TLSVerify, []string{host}
	return t, nil
}
