package filter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"understudy/internal/mta"
)

const (
	maxAnswer   = 1 << 20 // rspamd's JSON has all symbols with their options, seldom above 50 KiB
	maxPassword = 1 << 10
	topSymbols  = 8
)

// rspamd asks a worker by HTTP (https://docs.rspamd.com/developers/protocol).
type rspamd struct {
	base         string // URL without a slash at its end
	passwordFile string
	client       *http.Client
}

func newRspamd(c Config) (*rspamd, error) {
	r := &rspamd{base: "http://" + c.Address, passwordFile: c.PasswordFile}
	t := &http.Transport{ // none of the environment's proxies: mail is shown to nobody else
		DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DisableKeepAlives: true, // rspamd closes them, and a POST on one that was just closed can't be told from a failure
	}
	if network, at := endpoint(c.Address); network == "unix" {
		r.base = "http://localhost"
		t.DialContext = dialer("unix", at)
	} else if strings.Contains(c.Address, "://") {
		r.base = strings.TrimRight(c.Address, "/")
	}
	if c.TLSCA != "" {
		pem, err := os.ReadFile(c.TLSCA)
		if err != nil {
			return nil, fmt.Errorf("tls_ca: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls_ca: no certificate in %s", c.TLSCA)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	r.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r, nil
}

func (r *rspamd) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/ping", nil)
	if err != nil {
		return err
	}
	_, err = r.do(req)
	return err
}

func (r *rspamd) scan(ctx context.Context, m *message) ([]mta.Finding, error) {
	body, err := m.open()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"/checkv2", body)
	if err != nil {
		body.Close()
		return nil, err
	}
	req.ContentLength = m.content.Size
	req.Header = rspamdHeader(m)
	if r.passwordFile != "" {
		pw, err := password(r.passwordFile)
		if err != nil {
			body.Close()
			return nil, err
		}
		req.Header.Set("Password", pw)
	}
	answer, err := r.do(req)
	if err != nil {
		return nil, err
	}
	return rspamdFindings(answer)
}

// do gives the body of a 200 response.
func (r *rspamd) do(req *http.Request) ([]byte, error) {
	resp, err := r.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, which everybody knows
		}
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("answered %d: %s", resp.StatusCode, line(string(b), maxText))
	case len(b) > maxAnswer:
		return nil, fmt.Errorf("answered more than %d octets", maxAnswer)
	}
	return b, nil
}

// password is read each time, so that a changed one is used at once.
func password(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// rspamdHeader tells what rspamd can't see in the message: the envelope and the client. User is never among it: that
// would say that the client had logged in.
func rspamdHeader(m *message) http.Header {
	h := http.Header{}
	set := func(key, value string) {
		if value != "" {
			h.Set(key, printable(value))
		}
	}
	p := &m.env.Peer
	if a := p.Addr.Addr(); a.IsValid() {
		set("IP", a.Unmap().WithZone("").String())
	}
	set("Helo", p.Helo)
	set("Hostname", p.Name)
	h.Set("From", printable("<"+m.env.From.String()+">"))
	for i := range m.env.Rcpts {
		h.Add("Rcpt", printable("<"+m.env.Rcpts[i].Addr.String()+">"))
	}
	if len(m.env.Rcpts) == 1 {
		set("Deliver-To", m.env.Rcpts[0].Addr.String())
	}
	set("Queue-Id", m.env.ID.String())
	set("MTA-Name", m.hostname)
	if p.TLS != nil {
		set("TLS-Cipher", p.TLS.Cipher)
		set("TLS-Version", p.TLS.Version)
	}
	return h
}

// rspamdAnswer is what we read of /checkv2's JSON.
type rspamdAnswer struct {
	Action   string                  `json:"action"`
	Score    float64                 `json:"score"`
	Required float64                 `json:"required_score"`
	Skipped  bool                    `json:"is_skipped"`
	Error    string                  `json:"error"`
	Symbols  map[string]rspamdSymbol `json:"symbols"`
	Messages json.RawMessage         `json:"messages"` // an object; an empty one may be written []
}

type rspamdSymbol struct {
	Score float64 `json:"score"`
}

// rspamdFindings reads an answer.
func rspamdFindings(b []byte) ([]mta.Finding, error) {
	var a rspamdAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("answer is no JSON of a verdict: %w", err)
	}
	if a.Action == "" {
		if a.Error != "" {
			return nil, fmt.Errorf("answered with an error: %s", line(a.Error, maxText))
		}
		return nil, errors.New("answer has no action")
	}
	action, text := rspamdAction(a.Action)
	if action == mta.Accept && a.Action != "greylist" {
		return nil, nil
	}
	f := mta.Finding{Name: "rspamd:" + word(a.Action), Text: text, Action: action, Detail: a.detail()}
	if said := a.said(); said != "" && action >= mta.Defer {
		f.Text = said
	}
	return []mta.Finding{f}, nil
}

// rspamdAction says what becomes of a message, and what its sender is told. An action that we don't know was added by
// the operator of rspamd, and not to do nothing.
func rspamdAction(name string) (mta.Action, string) {
	switch name {
	case "no action", "accept":
		return mta.Accept, ""
	case "reject":
		return mta.Reject, "the message was found to be spam"
	case "soft reject":
		return mta.Defer, "the message can't be taken now, try again later"
	case "greylist": // policy has a greylist of its own
		return mta.Accept, "the message is to be greylisted"
	case "discard":
		return mta.Quarantine, "the message is kept from its recipients"
	}
	return mta.Mark, "the message looks like spam"
}

// said is what rspamd wants the sender to hear.
func (a *rspamdAnswer) said() string {
	var m struct {
		SMTP string `json:"smtp_message"`
	}
	if json.Unmarshal(a.Messages, &m) != nil {
		return ""
	}
	return line(m.SMTP, maxText)
}

// detail is the score and the symbols that count most.
func (a *rspamdAnswer) detail() string {
	names := make([]string, 0, len(a.Symbols))
	for n, s := range a.Symbols {
		if s.Score != 0 {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(x, y string) int {
		if d := math.Abs(a.Symbols[y].Score) - math.Abs(a.Symbols[x].Score); d != 0 {
			return int(math.Copysign(1, d))
		}
		return strings.Compare(x, y)
	})
	var b strings.Builder
	fmt.Fprintf(&b, "score %.4g of %.4g", a.Score, a.Required)
	for _, n := range names[:min(len(names), topSymbols)] {
		fmt.Fprintf(&b, " %s(%.4g)", word(n), a.Symbols[n].Score)
	}
	return line(b.String(), maxDetail)
}
