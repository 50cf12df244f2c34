/* What a Cortex-M needs before newlib's own start: a vector table, and the floating point unit switched on.
 *
 *   compress export-c --model k49 --target cortex-m7 --out k49-c
 *   compress verify k49-c --cc 'arm-none-eabi-gcc --specs=rdimon.specs -T board.ld start.c' \
 *       --run 'qemu-system-arm -M mps2-an500 -nographic -semihosting -kernel'
 *
 * Paths in --cc must be whole ones, as it is compiled in a temporary folder. The Cortex-M4 of qemu is mps2-an386. */
extern unsigned long top_of_stack;
extern void _start(void);
void reset(void);

__attribute__((section(".vectors"), used)) void *const vectors[] = {&top_of_stack, (void *)reset, (void *)reset, (void *)reset};

void reset(void) {
  *(volatile unsigned *)0xE000ED88 |= 0xF00000; /* coprocessors 10 and 11 */
  __asm__ volatile("dsb\n isb");
  _start();
  for (;;) {}
}
