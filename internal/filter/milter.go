package filter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/emersion/go-milter"

	"understudy/internal/mta"
)

// milterActions are what a milter may ask for. We do none of it but the quarantine; but a milter that may not ask
// refuses to work at all.
const milterActions = milter.OptAddHeader | milter.OptChangeBody | milter.OptAddRcpt | milter.OptRemoveRcpt |
	milter.OptChangeHeader | milter.OptQuarantine | milter.OptChangeFrom

// milterSteps are the steps that a milter may ask us to leave out, or to go on from without waiting for its answer.
const milterSteps = milter.OptNoConnect | milter.OptNoHelo | milter.OptNoMailFrom | milter.OptNoRcptTo | milter.OptNoBody |
	milter.OptNoHeaders | milter.OptNoEOH | milter.OptNoUnknown | milter.OptNoData |
	milter.OptNoConnReply | milter.OptNoHeloReply | milter.OptNoMailReply | milter.OptNoRcptReply | milter.OptNoDataReply |
	milter.OptNoUnknownReply | milter.OptNoHeaderReply | milter.OptNoEOHReply | milter.OptNoBodyReply | milter.OptHeaderLeadingSpace

// milterClient asks a milter, over a connection for each message: the client, HELO and envelope are told anew.
type milterClient struct {
	name, address string
	old           atomic.Bool // it speaks an older version of the protocol, with fewer options (before 6)
}

// The options that were there in version 2.
const (
	oldActions = 0x3f
	oldSteps   = 0x7f
)

// milterTalk is one message's conversation.
type milterTalk struct {
	*milter.ClientSession
	m    *message
	conn *boundedConn
}

// boundedConn reads no more than a milter can have to say: a body of its own, and a megabyte beside it.
type boundedConn struct {
	*conn
	left int64
}

var errTalkative = errors.New("answered far more than the message has")

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTalkative
	}
	n, err := c.conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// dialFunc is a milter.Dialer.
type dialFunc func() (net.Conn, error)

func (f dialFunc) Dial(string, string) (net.Conn, error) { return f() }

// open connects and negotiates, once more if the milter turns out to be old.
func (c *milterClient) open(ctx context.Context, m *message) (*milterTalk, error) {
	old := c.old.Load()
	cn, err := dial(ctx, c.address)
	if err != nil {
		return nil, err
	}
	t, err := begin(cn, m, old)
	if old || !errors.Is(err, milter.ErrUnsupportedMilterVersion) {
		return t, err
	}
	if cn, err = dial(ctx, c.address); err != nil {
		return nil, err
	}
	if t, err = begin(cn, m, true); err == nil {
		c.old.Store(true)
	}
	return t, err
}

// begin negotiates. It owns cn, also where it fails.
func begin(cn *conn, m *message, old bool) (*milterTalk, error) {
	actions, steps := milterActions, milterSteps
	if old {
		actions, steps = actions&oldActions, steps&oldSteps
	}
	t := &milterTalk{m: m, conn: &boundedConn{conn: cn, left: m.content.Size + 1<<20}}
	client := milter.NewClientWithOptions("", "", milter.ClientOptions{ // no time-outs: the context's hold
		Dialer: dialFunc(func() (net.Conn, error) { return t.conn, nil }), ActionMask: actions, ProtocolMask: steps,
	})
	var err error
	if t.ClientSession, err = client.Session(); err != nil {
		cn.Close()
		return nil, err
	}
	return t, nil
}

// end says goodbye. The connection is closed in any case.
func (t *milterTalk) end() {
	_ = t.ClientSession.Close() // the answer is known by now
	t.conn.Close()
}

func (c *milterClient) ping(ctx context.Context) error {
	t, err := c.open(ctx, &message{env: &mta.Envelope{}})
	if err != nil {
		return err
	}
	t.end()
	return nil
}

func (c *milterClient) scan(ctx context.Context, m *message) ([]mta.Finding, error) {
	t, err := c.open(ctx, m)
	if err != nil {
		return nil, err
	}
	defer t.end()
	v, err := t.run()
	if err != nil {
		return nil, err
	}
	return v.findings(c.name), nil
}

// run leads through the steps of a session until the milter has decided.
func (t *milterTalk) run() (milterVerdict, error) {
	for _, step := range []func() (*milter.Action, error){t.connect, t.helo, t.mail} {
		act, err := step()
		if err != nil {
			return milterVerdict{}, err
		}
		if v, done := milterDecision(act); done {
			return v, nil
		}
	}
	mark, done, err := t.rcpts()
	if done || err != nil {
		return mark, err
	}
	v, err := t.content()
	if err != nil {
		return milterVerdict{}, err
	}
	if v.action < mark.action {
		return mark, nil
	}
	return v, nil
}

func (t *milterTalk) connect() (*milter.Action, error) {
	p, j := &t.m.env.Peer, t.m.hostname
	addr, port, family := p.Addr.Addr().Unmap().WithZone(""), p.Addr.Port(), milter.FamilyInet
	host, name, ip := "["+addr.String()+"]", "unknown", addr.String()
	if p.Name != "" {
		host, name = plain(p.Name), plain(p.Name)
	}
	switch {
	case !addr.IsValid():
		host, ip, family = "unknown", "", milter.FamilyUnknown
	case addr.Is6():
		family = milter.FamilyInet6
		ip = "IPv6:" + ip // as sendmail and Postfix write it
	}
	err := t.macros(milter.CodeConn, "j", j, "{daemon_name}", j, "{daemon_addr}", p.Local.Addr().Unmap().WithZone("").String(),
		"{daemon_port}", strconv.Itoa(int(p.Local.Port())), "v", "Understudy", "_", name+" ["+addr.String()+"]",
		"{client_addr}", addr.String(), "{client_port}", strconv.Itoa(int(port)), "{client_name}", name, "{client_ptr}", name,
		"{client_connections}", "1", "{if_name}", j, "{if_addr}", p.Local.Addr().Unmap().WithZone("").String())
	if err != nil {
		return nil, err
	}
	return t.Conn(host, family, port, ip)
}

func (t *milterTalk) helo() (*milter.Action, error) {
	var kv []string
	if tls := t.m.env.Peer.TLS; tls != nil {
		kv = []string{"{tls_version}", strings.ReplaceAll(tls.Version, "TLS 1.", "TLSv1."), "{cipher}", tls.Cipher}
		if bits := cipherBits(tls.Cipher); bits != "" {
			kv = append(kv, "{cipher_bits}", bits)
		}
	}
	if err := t.macros(milter.CodeHelo, kv...); err != nil {
		return nil, err
	}
	return t.Helo(printable(t.m.env.Peer.Helo))
}

// cipherBits is the strength that a cipher suite's name tells.
func cipherBits(cipher string) string {
	for _, bits := range []string{"256", "128"} {
		if strings.Contains(cipher, "_"+bits+"_") {
			return bits
		}
	}
	if strings.Contains(cipher, "CHACHA20") {
		return "256"
	}
	return ""
}

func (t *milterTalk) mail() (*milter.Action, error) {
	env := t.m.env
	if err := t.macros(milter.CodeMail, "i", env.ID.String(), "{mail_addr}", env.From.String(), "{mail_host}", env.From.Domain, "{mail_mailer}", "smtp"); err != nil {
		return nil, err
	}
	args := []string{"SIZE=" + strconv.FormatInt(t.m.content.Size, 10)}
	if env.Params.Body != "" {
		args = append(args, "BODY="+env.Params.Body)
	}
	if env.Params.SMTPUTF8 {
		args = append(args, "SMTPUTF8")
	}
	return t.Mail(printable(env.From.String()), args)
}

// rcpts tells the recipients. Refusing all refuses the message; where it refuses some we have answered for them long
// ago, so the message is marked: the primary's own milter refuses them in its turn. Done: the milter wants no more.
func (t *milterTalk) rcpts() (v milterVerdict, done bool, err error) {
	var refused milterVerdict
	n := 0
	for i := range t.m.env.Rcpts {
		act, err := t.rcpt(&t.m.env.Rcpts[i])
		if err != nil {
			return milterVerdict{}, false, err
		}
		v, decided := milterDecision(act)
		if decided && v.action < mta.Defer { // about the whole message
			return v, true, nil
		}
		if !decided {
			continue
		}
		if n++; n == 1 || v.action < refused.action {
			refused = v // of all recipients' replies the mildest: some of them may be taken later
		}
	}
	if n == 0 || n == len(t.m.env.Rcpts) {
		return refused, n > 0, nil
	}
	mark := milterVerdict{action: mta.Mark, detail: fmt.Sprintf("refuses %d of %d recipients: %s", n, len(t.m.env.Rcpts), refused.text)}
	return mark, false, nil
}

func (t *milterTalk) rcpt(to *mta.Recipient) (*milter.Action, error) {
	err := t.macros(milter.CodeRcpt, "i", t.m.env.ID.String(), "{rcpt_addr}", to.Addr.String(), "{rcpt_host}", to.Dest, "{rcpt_mailer}", "smtp")
	if err != nil {
		return nil, err
	}
	return t.Rcpt(printable(to.Addr.String()), nil)
}

// macros sends those that have a value, before the command that they are for.
func (t *milterTalk) macros(code milter.Code, kv ...string) error {
	var set []string
	for i := 0; i+1 < len(kv); i += 2 {
		if kv[i+1] != "" {
			set = append(set, kv[i], printable(kv[i+1]))
		}
	}
	return t.Macros(code, set...)
}

// content sends header and body, and asks for the decision.
func (t *milterTalk) content() (milterVerdict, error) {
	body, err := t.m.open()
	if err != nil {
		return milterVerdict{}, err
	}
	defer body.Close()
	id := []string{"i", t.m.env.ID.String()}
	h := &fields{r: bufio.NewReaderSize(body, milter.MaxBodyChunk)}
	if v, done, err := t.header(h); done || err != nil {
		return v, err
	}
	if err := t.macros(milter.CodeEOH, id...); err != nil {
		return milterVerdict{}, err
	}
	act, err := t.HeaderEnd()
	if err != nil {
		return milterVerdict{}, err
	}
	if v, done := milterDecision(act); done {
		return v, nil
	}
	if v, done, err := t.body(h.rest()); done || err != nil {
		return v, err
	}
	if err := t.macros(milter.CodeEOB, id...); err != nil {
		return milterVerdict{}, err
	}
	wants, act, err := t.End()
	if err != nil {
		return milterVerdict{}, err
	}
	v, _ := milterDecision(act)
	return milterWishes(v, wants), nil
}

// header sends the fields, one of our own first: what authentication gave, for milters that judge by it. Folded lines
// are separated by LF alone, as milters get them from every mail server.
func (t *milterTalk) header(h *fields) (milterVerdict, bool, error) {
	lead := ""
	if t.ProtocolOption(milter.OptHeaderLeadingSpace) {
		lead = " "
	}
	send := func(name, value string) (milterVerdict, bool, error) {
		act, err := t.HeaderField(name, value)
		if err != nil {
			return milterVerdict{}, false, err
		}
		v, done := milterDecision(act)
		return v, done, nil
	}
	if own := authResults(t.m.hostname, &t.m.auth); own != "" {
		if v, done, err := send("Authentication-Results", lead+own); done || err != nil {
			return v, done, err
		}
	}
	for {
		name, value, ok, err := h.next()
		if !ok || err != nil {
			return milterVerdict{}, false, err
		}
		if lead == "" {
			value = strings.TrimPrefix(value, " ")
		}
		if v, done, err := send(name, value); done || err != nil {
			return v, done, err
		}
	}
}

// body sends the rest in chunks.
func (t *milterTalk) body(r io.Reader) (milterVerdict, bool, error) {
	if t.ProtocolOption(milter.OptNoBody) {
		return milterVerdict{}, false, nil
	}
	buf := make([]byte, milter.MaxBodyChunk)
	for {
		n, err := io.ReadFull(r, buf)
		if n == 0 && err == io.EOF {
			return milterVerdict{}, false, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return milterVerdict{}, false, err
		}
		act, err := t.BodyChunk(buf[:n])
		if err != nil {
			return milterVerdict{}, false, err
		}
		if v, done := milterDecision(act); done {
			return v, true, nil
		}
	}
}
