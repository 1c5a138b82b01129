package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"understudy/internal/mta"
)

// Versions of the two records. A reader takes all versions up to its own; docs/spool-format.md lists them.
const (
	messageVersion  = 2
	progressVersion = 1
)

// message is the commit record: a message exists while its record does.
type message struct {
	size int64  // octets of content
	sum  uint64 // xxHash64 of the content
	at   int64  // where the content lies in its generation's journal; 0: elsewhere
	file uint32 // the content's file is named after it; 0: it has none
	seal bool   // the file is encrypted
	env  *mta.Envelope
}

// enc appends the fields of a record. Integers are varints, strings have their length before them.
type enc []byte

func (e *enc) byte(b byte)     { *e = append(*e, b) }
func (e *enc) uint(v uint64)   { *e = binary.AppendUvarint(*e, v) }
func (e *enc) int(v int64)     { *e = binary.AppendVarint(*e, v) }
func (e *enc) string(s string) { e.uint(uint64(len(s))); *e = append(*e, s...) }
func (e *enc) path(p mta.Path) { e.string(p.Local); e.string(p.Domain) }

// float keeps a number; what is none counts as 0.
func (e *enc) float(f float64) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		f = 0
	}
	*e = binary.BigEndian.AppendUint64(*e, math.Float64bits(f))
}

// time keeps nanoseconds; 0 is the zero time, which no message can have been received at.
func (e *enc) time(t time.Time) {
	if t.IsZero() {
		e.int(0)
		return
	}
	e.int(t.UnixNano())
}

func (e *enc) addr(a netip.AddrPort) {
	b, _ := a.MarshalBinary() // never an error (net/netip)
	e.string(string(b))
}

func (e *enc) reply(r *mta.Reply, text int) {
	e.uint(uint64(r.Code))
	e.string(clip(r.Enhanced, len("5.999.999")))
	e.string(clip(r.Text, text))
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// dec reads the fields of a record. The first fault is kept and everything after it is zero.
type dec struct {
	b   []byte
	err error
}

var errShort = errors.New("record is too short")

func (d *dec) byte() byte {
	if len(d.b) == 0 {
		d.fail(errShort)
		return 0
	}
	b := d.b[0]
	d.b = d.b[1:]
	return b
}

func (d *dec) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *dec) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a number of things that take at least one octet each, so a damaged one can't ask for much memory.
func (d *dec) count() int {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail(errShort)
		return 0
	}
	return int(n)
}

func (d *dec) bytes() []byte {
	n := d.count()
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *dec) fixed() uint64 {
	if len(d.b) < 8 {
		d.fail(errShort)
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *dec) float() float64 {
	f := math.Float64frombits(d.fixed())
	if math.IsNaN(f) || math.IsInf(f, 0) {
		d.fail(errors.New("a score is not a number"))
		return 0
	}
	return f
}

func (d *dec) string() string { return string(d.bytes()) }

func (d *dec) path() mta.Path { return mta.Path{Local: d.string(), Domain: d.string()} }

func (d *dec) time() time.Time {
	v := d.int()
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, v).UTC()
}

func (d *dec) addr() netip.AddrPort {
	var a netip.AddrPort
	if err := a.UnmarshalBinary(d.bytes()); err != nil {
		d.fail(err)
	}
	return a
}

func (d *dec) reply() mta.Reply {
	return mta.Reply{Code: int(d.uint()), Enhanced: d.string(), Text: d.string()}
}

func (d *dec) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

// version refuses records of a later release: to guess at them would be to lose mail.
func (d *dec) version(known byte) byte {
	v := d.byte()
	if d.err == nil && (v == 0 || v > known) {
		d.fail(fmt.Errorf("record has version %d; this release knows up to %d", v, known))
	}
	return v
}

// flagSealed marks a message whose content's file is encrypted.
const flagSealed = 1

// Bits of an envelope's flags.
const (
	flagTLS = 1 << iota
	flagSMTPUTF8
	flagRequireTLS
	flagEarly
	flagVerdict
)

// encode gives the commit record.
func (m *message) encode() []byte {
	env := m.env
	e := make(enc, 0, 256+64*len(env.Rcpts))
	e.byte(messageVersion)
	e = append(e, env.ID[:]...)
	e = binary.BigEndian.AppendUint64(e, uint64(m.at))
	e.uint(uint64(m.size))
	e = binary.BigEndian.AppendUint64(e, m.sum)
	e.uint(uint64(m.file))
	e.byte(flagIf(m.seal, flagSealed))
	e.time(env.Received)
	e.time(env.Due)
	e.time(env.Expires)
	e.envelope(env)
	return e
}

// placeContent writes into a record where its content lies: that is known once its commit is.
func placeContent(record []byte, at int64) {
	binary.BigEndian.PutUint64(record[1+len(mta.ID{}):], uint64(at))
}

func (e *enc) envelope(env *mta.Envelope) {
	e.byte(flagIf(env.Peer.TLS != nil, flagTLS) | flagIf(env.Params.SMTPUTF8, flagSMTPUTF8) |
		flagIf(env.Params.RequireTLS, flagRequireTLS) | flagIf(env.Peer.Early, flagEarly) | flagIf(env.Verdict != nil, flagVerdict))
	e.string(env.Node)
	e.addr(env.Peer.Addr)
	e.addr(env.Peer.Local)
	e.string(env.Peer.Name)
	e.string(env.Peer.Helo)
	e.string(env.Peer.Proto)
	if t := env.Peer.TLS; t != nil {
		e.string(t.Version)
		e.string(t.Cipher)
		e.string(t.ServerName)
	}
	e.path(env.From)
	e.string(env.Params.Body)
	e.string(env.Params.Ret)
	e.string(env.Params.EnvID)
	e.uint(uint64(len(env.Rcpts)))
	for i := range env.Rcpts {
		r := &env.Rcpts[i]
		e.path(r.Addr)
		e.string(r.ORcpt)
		e.byte(byte(r.Notify))
		e.string(r.Dest)
	}
	if env.Verdict != nil {
		e.verdict(env.Verdict)
	}
}

// Of a verdict so much is kept: what others say of a message must not fill the disk, and has to fit into one commit.
const (
	maxFindings    = 100
	maxSignatures  = 100
	maxVerdictText = 1024
)

func (e *enc) verdict(v *mta.Verdict) {
	e.byte(byte(v.Action))
	e.float(v.Score)
	e.time(v.At)
	findings := v.Findings[:min(len(v.Findings), maxFindings)]
	e.uint(uint64(len(findings)))
	for i := range findings {
		f := &findings[i]
		e.string(clip(f.Name, maxVerdictText))
		e.string(clip(f.Text, maxVerdictText))
		e.string(clip(f.Detail, maxVerdictText))
		e.float(f.Weight)
		e.byte(byte(f.Action))
		e.string(clip(f.Status, maxVerdictText))
	}
	e.authResult(&v.Auth.SPF)
	e.authResult(&v.Auth.Helo)
	e.authResult(&v.Auth.DMARC)
	e.byte(flagIf(v.Auth.Aligned, flagAligned))
	signatures := v.Auth.DKIM[:min(len(v.Auth.DKIM), maxSignatures)]
	e.uint(uint64(len(signatures)))
	for i := range signatures {
		e.authResult(&signatures[i])
	}
}

// flagAligned marks a verdict whose message is proved to be from the domain of its From field.
const flagAligned = 1

func (e *enc) authResult(r *mta.AuthResult) {
	e.string(clip(r.Result, maxVerdictText))
	e.string(clip(r.Domain, maxVerdictText))
	e.string(clip(r.Selector, maxVerdictText))
	e.string(clip(r.Reason, maxVerdictText))
}

// decodeMessage reads a commit record.
func decodeMessage(b []byte) (*message, error) {
	d := dec{b: b}
	version := d.version(messageVersion)
	m := &message{env: &mta.Envelope{}}
	if len(d.b) < len(m.env.ID) {
		d.fail(errShort)
	}
	d.b = d.b[copy(m.env.ID[:], d.b):]
	if version >= 2 {
		m.at = int64(d.fixed())
	}
	m.size = int64(d.uint())
	m.sum = d.fixed()
	m.file = uint32(d.uint())
	m.seal = d.byte()&flagSealed != 0
	m.env.Received = d.time()
	m.env.Due = d.time()
	m.env.Expires = d.time()
	d.envelope(m.env)
	if d.err != nil {
		return nil, fmt.Errorf("commit record: %w", d.err)
	}
	return m, nil
}

func (d *dec) envelope(env *mta.Envelope) {
	flags := d.byte()
	env.Params.SMTPUTF8 = flags&flagSMTPUTF8 != 0
	env.Params.RequireTLS = flags&flagRequireTLS != 0
	env.Peer.Early = flags&flagEarly != 0
	env.Node = d.string()
	env.Peer.Addr = d.addr()
	env.Peer.Local = d.addr()
	env.Peer.Name = d.string()
	env.Peer.Helo = d.string()
	env.Peer.Proto = d.string()
	if flags&flagTLS != 0 {
		env.Peer.TLS = &mta.TLS{Version: d.string(), Cipher: d.string(), ServerName: d.string()}
	}
	env.From = d.path()
	env.Params.Body = d.string()
	env.Params.Ret = d.string()
	env.Params.EnvID = d.string()
	n := d.count()
	env.Rcpts = make([]mta.Recipient, 0, min(n, 1024))
	for range n {
		r := mta.Recipient{Addr: d.path(), ORcpt: d.string(), Notify: mta.Notify(d.byte()), Dest: d.string()}
		if d.err != nil {
			return
		}
		env.Rcpts = append(env.Rcpts, r)
	}
	if flags&flagVerdict != 0 {
		env.Verdict = d.verdict()
	}
}

func (d *dec) verdict() *mta.Verdict {
	v := &mta.Verdict{Action: d.action(), Score: d.float(), At: d.time()}
	for range d.count() {
		v.Findings = append(v.Findings, mta.Finding{
			Name: d.string(), Text: d.string(), Detail: d.string(), Weight: d.float(), Action: d.action(), Status: d.string(),
		})
		if d.err != nil {
			return nil
		}
	}
	v.Auth.SPF, v.Auth.Helo, v.Auth.DMARC = d.authResult(), d.authResult(), d.authResult()
	v.Auth.Aligned = d.byte()&flagAligned != 0
	for range d.count() {
		v.Auth.DKIM = append(v.Auth.DKIM, d.authResult())
		if d.err != nil {
			return nil
		}
	}
	return v
}

func (d *dec) action() mta.Action { return mta.Action(d.byte()) }

func (d *dec) authResult() mta.AuthResult {
	return mta.AuthResult{Result: d.string(), Domain: d.string(), Selector: d.string(), Reason: d.string()}
}
