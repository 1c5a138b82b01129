package mta

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"time"
)

// ID names one message. It is a UUIDv7 (RFC 9562, 5.7), so IDs sort by the time of receipt; its text form is the
// queue id of the 250 reply and of the log.
type ID [16]byte

// idText is base32hex in lower case: its order is the order of the bytes.
var idText = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// NewID makes an ID for a message received at now.
func NewID(now time.Time) ID {
	var id ID
	rand.Read(id[:]) // never returns an error (crypto/rand)
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseID reads the text form.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != idText.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("queue id %q: want 26 characters", s)
	}
	if _, err := idText.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("queue id %q: %w", s, err)
	}
	if id.String() != s { // stray low bits would give one message two names
		return ID{}, fmt.Errorf("queue id %q: not canonical", s)
	}
	return id, nil
}

// String is the text form: 26 characters, lower case.
func (id ID) String() string { return idText.EncodeToString(id[:]) }

// Time is when the ID was made, to the millisecond.
func (id ID) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], id[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:])))
}

// IsZero reports whether the ID was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}
