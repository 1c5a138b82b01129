package spool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// keyring holds the keys of encryption at rest, by ID: new mail takes the first, older mail keeps its own.
type keyring struct {
	id  string // of key; empty without encryption
	key []byte
	all map[string][]byte
}

const keySize = 32 // AES-256

// keyID names a key without telling anything of it.
func keyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("understudy spool key "), key...))
	return hex.EncodeToString(sum[:8])
}

func loadKeys(cfg Config) (*keyring, error) {
	k := &keyring{all: make(map[string][]byte)}
	if cfg.KeyFile != "" {
		key, err := readKey(cfg.KeyFile)
		if err != nil {
			return nil, err
		}
		k.id, k.key = keyID(key), key
		k.all[k.id] = key
	}
	for _, path := range cfg.OldKeyFiles {
		key, err := readKey(path)
		if err != nil {
			return nil, err
		}
		k.all[keyID(key)] = key
	}
	return k, nil
}

// readKey takes 64 hexadecimal digits, or 32 octets as they are.
func readKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if len(b) == keySize {
		return b, nil
	}
	key, err := hex.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("key file %s: want 64 hexadecimal digits or %d octets", path, keySize)
	}
	return key, nil
}

// find gives the key that something was encrypted with, or says what the operator has to do.
func (k *keyring) find(id, what string) ([]byte, error) {
	if id == "" {
		return nil, nil
	}
	key, ok := k.all[id]
	if !ok {
		return nil, fmt.Errorf("%s is encrypted with the key %s, which is in neither key_file nor old_key_files", what, id)
	}
	return key, nil
}

// A sealed file is a head (magic, key ID, salt) and frames of AES-256-GCM under a key that is derived from salt. A
// frame's nonce is its number and whether it is the last one, so frames can't be moved, left out or cut off.
const (
	sealMagic = "USSEAL1\n"
	saltSize  = 32
	frameSize = 64 << 10
)

func frameCipher(key, salt []byte) (cipher.AEAD, error) {
	return sealCipher(key, salt, "understudy spool body")
}

// sealCipher derives the key of one file.
func sealCipher(key, salt []byte, info string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key, salt, info, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func frameNonce(n uint64, last bool) []byte {
	nonce := binary.BigEndian.AppendUint64(make([]byte, 3, 12), n)
	return append(nonce, flagIf(last, 1))
}

// sealer encrypts what is written to it.
type sealer struct {
	w     io.Writer
	aead  cipher.AEAD
	n     uint64
	plain []byte
	out   []byte
}

func newSealer(w io.Writer, k *keyring) (*sealer, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never returns an error (crypto/rand)
	aead, err := frameCipher(k.key, salt)
	if err != nil {
		return nil, err
	}
	head := append([]byte(sealMagic+k.id), salt...)
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	return &sealer{w: w, aead: aead, plain: make([]byte, 0, frameSize)}, nil
}

func (s *sealer) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		if len(s.plain) == frameSize {
			if err := s.flush(false); err != nil {
				return total - len(b), err
			}
		}
		n := min(len(b), frameSize-len(s.plain))
		s.plain = append(s.plain, b[:n]...)
		b = b[n:]
	}
	return total, nil
}

// Close writes the last frame.
func (s *sealer) Close() error { return s.flush(true) }

func (s *sealer) flush(last bool) error {
	s.out = s.aead.Seal(s.out[:0], frameNonce(s.n, last), s.plain, nil)
	s.n++
	s.plain = s.plain[:0]
	_, err := s.w.Write(s.out)
	return err
}

// opener decrypts what it reads.
type opener struct {
	r     io.Reader
	aead  cipher.AEAD
	n     uint64
	frame []byte
	plain []byte // not handed out yet
	last  bool
}

// sealHead is what a sealed file begins with.
type sealHead struct {
	keyID string
	salt  []byte
}

func readSealHead(r io.Reader) (sealHead, error) {
	b := make([]byte, len(sealMagic)+len(keyID(nil))+saltSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return sealHead{}, fmt.Errorf("%w: head of a sealed file: %w", ErrDamaged, err)
	}
	if !bytes.HasPrefix(b, []byte(sealMagic)) {
		return sealHead{}, fmt.Errorf("%w: not a sealed file", ErrDamaged)
	}
	b = b[len(sealMagic):]
	return sealHead{keyID: string(b[:len(b)-saltSize]), salt: b[len(b)-saltSize:]}, nil
}

func newOpener(r io.Reader, k *keyring) (*opener, error) {
	head, err := readSealHead(r)
	if err != nil {
		return nil, err
	}
	key, err := k.find(head.keyID, "content")
	if err != nil { // its generation has the same key, and was opened: so the ID itself is damaged
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	aead, err := frameCipher(key, head.salt)
	if err != nil {
		return nil, err
	}
	return &opener{r: r, aead: aead, frame: make([]byte, frameSize+aead.Overhead())}, nil
}

func (o *opener) Read(b []byte) (int, error) {
	for len(o.plain) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if err := o.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, o.plain)
	o.plain = o.plain[n:]
	return n, nil
}

// next opens one frame; a short one, or one at the end of the file, must be the last.
func (o *opener) next() error {
	n, err := io.ReadFull(o.r, o.frame)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		if err == io.EOF {
			return fmt.Errorf("%w: sealed file is cut off", ErrDamaged)
		}
		return err
	}
	frame := o.frame[:n]
	if o.plain, err = o.aead.Open(nil, frameNonce(o.n, false), frame, nil); err != nil {
		o.last = true
		if o.plain, err = o.aead.Open(nil, frameNonce(o.n, true), frame, nil); err != nil {
			return fmt.Errorf("%w: sealed frame %d", ErrDamaged, o.n)
		}
	}
	o.n++
	return nil
}

// CheckKeys reads the key files as Open would.
func CheckKeys(cfg Config) error {
	if _, err := loadKeys(cfg); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}
