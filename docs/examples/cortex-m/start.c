/* What a Cortex-M needs before main: a vector table, the floating point unit switched on, zeros in .bss, and newlib's files.
 *
 *   compress export-c --model k49 --target cortex-m7 --out k49-c
 *   compress verify k49-c --cc 'arm-none-eabi-gcc --specs=rdimon.specs -T /PATH/board.ld /PATH/start.c' \
 *       --run 'qemu-system-arm -M mps2-an500 -nographic -semihosting -kernel'
 *
 * Paths in --cc must be whole ones, as it is compiled in a temporary folder. In qemu the Cortex-M4 is mps2-an386, the M7 mps2-an500 and the
 * M55 mps3-an547. newlib's own start is left out: it asks the debugger where the heap is, and for the mps3-an547 qemu names the memory in
 * which the program lies, so that every malloc failed. So heap and stack are those of board.ld. */
#include <stdlib.h>
#include <string.h>
extern unsigned long top_of_stack;
extern char __bss_start__, __bss_end__;
extern int main(void);
extern void initialise_monitor_handles(void);
void reset(void);

__attribute__((section(".vectors"), used)) void *const vectors[] = {&top_of_stack, (void *)reset, (void *)reset, (void *)reset};

void reset(void) {
  *(volatile unsigned *)0xE000ED88 |= 0xF00000; /* coprocessors 10 and 11 */
  __asm__ volatile("dsb\n isb");
  memset(&__bss_start__, 0, (size_t)(&__bss_end__ - &__bss_start__));
  initialise_monitor_handles();
  exit(main());
}
